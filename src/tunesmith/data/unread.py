"""Columns that a format does not read: found by watching what it asks the rows for, so that none is lost without a word."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tunesmith.config.errors import DataError
from tunesmith.data.columns import FieldMap

LISTED = 8


class _Watched(Mapping[str, Any]):
    """A row that remembers which of its columns were asked for."""

    def __init__(self, row: Mapping[str, Any], asked: set[str]) -> None:
        self._row, self._asked = row, asked

    def __getitem__(self, key: str) -> Any:
        self._asked.add(key)
        return self._row[key]

    def __contains__(self, key: object) -> bool:
        return key in self._row

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)


def unread_columns(
    rows: Sequence[tuple[str, Any]], convert: Callable[[Any, str, FieldMap], Any], fields: FieldMap
) -> dict[str, Any]:
    """column -> one of its values, for the columns of ``rows`` that ``convert`` asks none of them for."""
    asked: set[str] = set()
    values: dict[str, Any] = {}
    for origin, row in rows:
        if not isinstance(row, Mapping):
            continue
        values |= {key: value for key, value in row.items() if value is not None}
        try:
            convert(_Watched(row, asked), origin, fields)
        except DataError:
            asked |= row.keys()  # it was not read to its end
    return {key: value for key, value in values.items() if key not in asked}


def said(place: str, unread: Mapping[str, Any], *, verdicts: bool) -> str:
    """The columns in words; ``verdicts``: whether a column of true and false could make feedback of the rows."""
    listed = ", ".join(map(repr, list(unread)[:LISTED])) + (
        f" and {len(unread) - LISTED} more" if len(unread) > LISTED else ""
    )
    tag = verdict_of(unread) if verdicts else None
    hint = f"; if {tag!r} tells good answers from bad ones, set columns: {{kto_tag: {tag}}}" if tag else ""
    return f"{place}: columns that are not read: {listed}{hint}"


def verdict_of(unread: Mapping[str, Any]) -> str | None:
    """A column that seems to tell good answers from bad ones: it is true or false, or called so."""
    return next((key for key, value in unread.items() if isinstance(value, bool) or key in ("label", "kto_tag")), None)
