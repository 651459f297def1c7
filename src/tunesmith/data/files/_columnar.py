"""Rows of Arrow tables as Python values, batch by batch. No reader of its own: Parquet and Arrow files share it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tunesmith.config.errors import DataError
from tunesmith.data.files.base import ROW_LIMIT, too_long

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
        longest = max((_longest(column) for column in batch.columns), default=0)
        size = max(
            1, min(BATCH, ROW_LIMIT // max(1, longest))
        )  # rows of which no more than a row's limit is made at once
        for start in range(0, batch.num_rows, size):
            part = batch.slice(start, size)
            try:
                rows = part.to_pylist()
            except UNREADABLE:
                rows = [_one(part.slice(i, 1), f"{name}:row {number + i + 1}") for i in range(part.num_rows)]
            for row in rows:
                number += 1
                origin = f"{name}:row {number}"
                yield origin, too_long(origin) if longest > ROW_LIMIT and _size(row) > ROW_LIMIT else row


def _longest(column: Any) -> int:
    """Bytes of the longest text in a column or below it; a dictionary's are looked at once, however often they come."""
    import pyarrow as pa
    from pyarrow import compute

    kind = column.type
    if pa.types.is_dictionary(kind):
        return _longest(column.dictionary)
    if pa.types.is_struct(kind):
        return max((_longest(column.field(i)) for i in range(kind.num_fields)), default=0)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _longest(column.values)
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return (
        int(compute.max(compute.binary_length(column)).as_py() or 0) if any(is_text(kind) for is_text in texts) else 0
    )


def _size(value: Any) -> int:
    """Characters or bytes of all texts in a row."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, (list, tuple)) else 0


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
