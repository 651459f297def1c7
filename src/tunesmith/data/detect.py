"""Which format rows have, told by their column names; and the message when none fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.config.errors import DataError
from tunesmith.config.plugins import load, names, suggestion
from tunesmith.data.columns import FieldMap

FORMATS = "tunesmith.data.formats"
LOOKED_AT = 100


def detect(rows: Sequence[tuple[str, Any]], fields: FieldMap, named: str | None = None) -> tuple[str, str]:
    """Name of the format and why it was taken. ``rows`` are ``(origin, row)``, as many of the set's first ones as are at
    hand; ``named`` is the format that somebody named.

    Raises DataError: no row is an object; no format fits; ``columns`` names one that none of the rows has.
    """
    objects = [(origin, row) for origin, row in rows if isinstance(row, Mapping)]
    if not objects:
        origin, row = rows[0]
        raise DataError(f"{origin}: expected an object with keys, found {type(row).__name__}")
    origin, row = objects[0]
    for role, column in fields.columns.items():
        if not any(column in there for _, there in objects):
            raise DataError(
                f"{origin}: there is no column {column!r}, which `columns` names as {role!r}",
                hint=f"{suggestion(column, list(row))}; the rows have: {', '.join(map(repr, row))}",
            )
    if named is not None:
        return named, "it was named"
    for name in names(FORMATS):
        plugin = load(FORMATS, name)
        renamed = dict(row)
        for role, column in fields.columns.items():
            if role in plugin.ROLES and column in row:
                renamed[plugin.ROLES[role]] = row[column]
        if reason := plugin.detect(renamed):
            return name, str(reason)
    raise DataError(
        f"{origin}: cannot tell the format from the keys {', '.join(map(repr, row))}",
        hint="expected instruction/output (alpaca) or conversations/messages (sharegpt); "
        "other names are mapped with `columns` in a dataset_info.json",
    )
