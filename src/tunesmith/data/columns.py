"""How a data set's own column and role names map to what a format expects (``columns`` and ``tags``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.config.errors import DataError


@dataclass(frozen=True)
class FieldMap:
    """``columns``: our name -> the file's column; ``tags``: our name -> the word the file uses;
    ``ranking``: the rows are pairs of a better and a worse answer (LLaMA-Factory's key)."""

    columns: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    ranking: bool = False

    def column(self, name: str, default: str | None = None) -> str:
        return self.columns.get(name) or default or name

    def tag(self, name: str, default: str) -> str:
        return self.tags.get(name) or default


def text_of(row: Mapping[str, Any], column: str, origin: str, *, optional: bool = False) -> str:
    """The text in ``column``; numbers are not text. Raises DataError naming row, column and what was found."""
    value = row.get(column)
    if value is None and optional:
        return ""
    if isinstance(value, str):
        return value
    if column not in row:
        there = ", ".join(map(repr, row)) or "none"
        raise DataError(
            f"{origin}: the column {column!r} is missing",
            hint=f"this row has: {there}; map other names with `columns` in dataset_info.json",
        )
    raise DataError(f"{origin}: {column!r} should be text, found {type(value).__name__}: {str(value)[:60]!r}")
