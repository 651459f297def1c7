"""JSON Lines: one JSON value per line; blank lines do not count. A line that is no JSON is a bad row, not a bad file."""

from __future__ import annotations

from json import JSONDecodeError
from typing import BinaryIO

from tunesmith.config.errors import DataError
from tunesmith.data.decode import lines
from tunesmith.data.files.base import Options, Rows
from tunesmith.data.strict_json import Flaw, decode

SUFFIXES = (".jsonl", ".ndjson")
SEEKS = False


def rows(file: BinaryIO, name: str, options: Options) -> Rows:
    """``origin`` is ``name:line``."""
    for number, line in lines(file, name):
        if line.isspace():
            continue
        origin = f"{name}:{number}"
        try:
            value = decode(line)
        except RecursionError:
            value = DataError(f"{origin}: nested too deeply to be a data set")
        except JSONDecodeError as error:
            value = DataError(
                f"{origin}: not valid JSON: {error.msg} at character {error.pos + 1}: {line.strip()[:60]!r}",
                hint="each line must be one complete JSON object",
            )
        if isinstance(value, Flaw):
            value = DataError(f"{origin}: {value}")
        yield origin, value
