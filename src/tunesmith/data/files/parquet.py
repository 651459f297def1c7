"""Parquet, read in batches of rows."""

from __future__ import annotations

from typing import BinaryIO

from tunesmith.config.errors import DataError
from tunesmith.data.files._columnar import BATCH, check_columns, numbered
from tunesmith.data.files.base import Options, Rows

SUFFIXES = (".parquet",)
SEEKS = True


def rows(file: BinaryIO, name: str, options: Options) -> Rows:
    """``origin`` is ``name:row N``, counted from 1."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    origin = ""
    try:
        with ParquetFile(file, pre_buffer=False, read_dictionary=_texts(file)) as table:
            check_columns(table.schema_arrow.names, name)
            for origin, row in numbered(table.iter_batches(batch_size=BATCH), name):
                yield origin, row
    except (pyarrow.ArrowException, OSError) as error:
        where = f" after {origin.rpartition(':')[2]}" if origin else ""
        raise DataError(
            f"{name}: not a whole Parquet file{where}: {str(error).splitlines()[0]}", hint="download or write it again"
        ) from error


def _texts(file: BinaryIO) -> list[str]:
    """The columns of texts, nested ones too: read as dictionaries, a value that comes a thousand times is held once."""
    from pyarrow.parquet import ParquetFile

    schema = ParquetFile(file).schema
    file.seek(0)
    return [c.path for c in (schema.column(i) for i in range(len(schema))) if c.physical_type == "BYTE_ARRAY"]
