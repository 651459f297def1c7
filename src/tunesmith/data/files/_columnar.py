"""Rows of Arrow tables as Python values, batch by batch. No reader of its own: Parquet and Arrow files share it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tunesmith.config.errors import DataError

BATCH = 256
UNREADABLE = (ValueError, OverflowError, TypeError, KeyError, ImportError)
"""What Arrow raises for a value that Python has nothing for: bytes that are no UTF-8, a date in the year 70,000, an unknown
time zone. (ArrowInvalid is a ValueError.)"""


def check_columns(names: Sequence[str], name: str) -> None:
    """Raise DataError when a column name stands twice: one of them would be lost."""
    twice = next((column for i, column in enumerate(names) if column in names[:i]), None)
    if twice is not None:
        raise DataError(f"{name}: the column {twice!r} stands twice", hint="give every column its own name")


def numbered(batches: Iterator[Any], name: str) -> Iterator[tuple[str, Any]]:
    """``(name:row N, row)`` of every row, counted from 1; a DataError for a row with a value that cannot be read."""
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH):
            part = batch.slice(start, BATCH)
            try:
                rows = part.to_pylist()
            except UNREADABLE:
                rows = [_one(part.slice(i, 1), f"{name}:row {number + i + 1}") for i in range(part.num_rows)]
            for row in rows:
                number += 1
                yield f"{name}:row {number}", row


def _one(batch: Any, origin: str) -> Any:
    row = {}
    for column, values in zip(batch.schema.names, batch.columns):
        try:
            (row[column],) = values.to_pylist()
        except UNREADABLE as error:
            return DataError(
                f"{origin}: the value of the column {column!r} ({values.type}) cannot be read: {str(error).splitlines()[0]}",
                hint="write it as text, or leave the column out of the file",
            )
    return row
