"""What every reader of a kind of file knows: its options and limits.

A reader is one file in this package with ``SUFFIXES``, ``SEEKS`` (whether it jumps in the file, so that it cannot read a
compressed stream) and ``rows(file, name, options)``, which yields ``(origin, row)``: ``origin`` is ``name:line`` or
``name:row N``, ``row`` what stands there, or a DataError where one row alone cannot be read. Trouble with the whole file is
raised as DataError. No reader holds more than one row, or one batch of rows, in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from tunesmith.config.errors import DataError

ROW_LIMIT = 64 << 20
"""Bytes that one row (a line, a JSON value, a text) may have. More is a damaged file or no data set."""
Rows: TypeAlias = Iterator[tuple[str, Any]]


@dataclass(frozen=True)
class Options:
    """``field``: key of the list of rows in a JSON object; ``text_unit``: line, paragraph or document."""

    field: str | None = None
    text_unit: str = "line"


def too_long(place: str) -> DataError:
    return DataError(
        f"{place}: one row is longer than {ROW_LIMIT >> 20} MB",
        hint="split it into smaller ones; a missing line break or closing quote also looks like this",
    )
