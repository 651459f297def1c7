"""Parquet, read in batches of rows."""

from __future__ import annotations

from typing import BinaryIO

from tunesmith.config.errors import DataError
from tunesmith.data.files.base import Options, Rows

SUFFIXES = (".parquet",)
SEEKS = True
BATCH = 256


def rows(file: BinaryIO, name: str, options: Options) -> Rows:
    """``origin`` is ``name:row N``, counted from 1."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(file, pre_buffer=False) as table:
            for batch in table.iter_batches(batch_size=BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{name}:row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        where = f" after row {number}" if number else ""
        raise DataError(
            f"{name}: not a whole Parquet file{where}: {str(error).splitlines()[0]}", hint="download or write it again"
        ) from error
