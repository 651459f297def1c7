"""Arrow and Feather files, both the file format and the stream format that ``datasets`` saves, read in batches."""

from __future__ import annotations

from typing import Any, BinaryIO

from tunesmith.config.errors import DataError
from tunesmith.data.files._columnar import check_columns, numbered
from tunesmith.data.files.base import Options, Rows

SUFFIXES = (".arrow", ".feather", ".ipc")
SEEKS = True
FILE_MARK = b"ARROW1"


def rows(file: BinaryIO, name: str, options: Options) -> Rows:
    """``origin`` is ``name:row N``, counted from 1."""
    import pyarrow
    from pyarrow import ipc

    origin = ""
    try:
        mark = file.read(len(FILE_MARK))
        file.seek(0)
        batches: Any
        reader: Any
        if mark == FILE_MARK:
            reader = ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = reader = ipc.open_stream(file)
        check_columns(reader.schema.names, name)
        for origin, row in numbered(batches, name):
            yield origin, row
    except (pyarrow.ArrowException, OSError) as error:
        where = f" after {origin.rpartition(':')[2]}" if origin else ""
        raise DataError(
            f"{name}: not a whole Arrow file{where}: {str(error).splitlines()[0]}", hint="download or write it again"
        ) from error
