"""Which format rows have, told by their column names; and the message when none fits, or another than the one named."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from tunesmith.config.errors import DataError
from tunesmith.config.plugins import load, names, suggestion
from tunesmith.data.columns import FieldMap, found, names_in
from tunesmith.data.roles import KEY_TAGS, check_tags

FORMATS = "tunesmith.data.formats"
LOOKED_AT = 100
"""So many rows are looked at to tell the format; the first that has one decides."""


def formats() -> list[ModuleType]:
    """The formats in the order in which they are asked: the narrower ones first (their ``PRECEDENCE``)."""
    return sorted((load(FORMATS, name) for name in names(FORMATS)), key=lambda f: (f.PRECEDENCE, f.__name__))


def name_of(plugin: ModuleType) -> str:
    return plugin.__name__.rpartition(".")[2]


def detect(rows: Sequence[tuple[str, Any]], fields: FieldMap, named: str | None = None) -> tuple[str, str]:
    """Name of the format and why it was taken. ``rows`` are ``(origin, row)``, as many of the set's first ones as are at
    hand; ``named`` is the format that somebody named, which is then checked against the rows.

    Raises DataError: no row is an object; no format fits; the named one fits no row but another does; ``columns`` or
    ``tags`` have unknown names, or columns that none of the rows has.
    """
    objects = [(origin, row) for origin, row in rows if isinstance(row, Mapping)]
    if not objects:
        origin, row = rows[0] if rows else ("the data set", None)
        raise DataError(
            f"{origin}: expected an object with keys, found {found(row)}"
            if rows
            else "there is no row in the data set",
            hint='a row is an object such as {"instruction": "…", "output": "…"}',
        )
    _check_fields(objects, fields, named)
    if named is not None:
        _check_named(objects[:LOOKED_AT], fields, named)
        return named, "it was named"
    for _, row in objects[:LOOKED_AT]:
        fitting = _fitting(row, fields)
        if fitting:
            return fitting[0]
    origin, row = objects[0]
    expected = "".join(f"\n  {name_of(f)}: {f.EXPECTS}" for f in formats())
    keys = [*map(str, row), "question", "answer"][:: max(len(row) - 1, 1)]  # the first and the last, for an example
    raise DataError(
        f"{origin}: cannot tell the format from the keys {names_in(row)}",
        hint="tell what the columns are, in place of the set's name (in YAML under data.train, or on the command line): "
        f"'{{set: {_short(origin)}, columns: {{prompt: {keys[0]}, response: {keys[1]}}}}}'; known without that:{expected}",
    )


def _short(origin: str) -> str:
    """The file of an origin as a person may write it."""
    return re.sub(r":(row )?\d+$", "", origin)


def misfit(row: Mapping[str, Any], origin: str, fields: FieldMap, named: str, problem: str) -> DataError:
    """The error for a row that is not of the format ``named``: what it looks like instead, or what it has."""
    other = next(((name, why) for name, why in _fitting(row, fields) if name != named), None)
    if other is None:
        return DataError(f"{origin}: {problem}", hint=f"this row has: {names_in(row)}; tell other names with `columns`")
    return DataError(
        f"{origin}: {problem}; it is read as {named}",
        hint=f"this row looks like {other[0]}: {other[1]}; all rows of a set have one format",
    )


def _fitting(row: Mapping[str, Any], fields: FieldMap) -> list[tuple[str, str]]:
    """Every format that the row may have, with the reason, in the order of precedence."""
    fitting = []
    for plugin in formats():
        if not fields.columns.keys() <= plugin.ROLES.keys() or (fields.ranking and "chosen" not in plugin.ROLES):
            continue
        reason = plugin.detect(_translated(row, plugin, fields))
        if reason:
            fitting.append((name_of(plugin), str(reason)))
    return fitting


def _translated(row: Mapping[str, Any], plugin: ModuleType, fields: FieldMap) -> dict[str, Any]:
    """The row with the format's own names in place of those that ``columns`` and ``tags`` tell."""
    taken = {column for role, column in fields.columns.items() if role in plugin.ROLES}
    renamed = {key: value for key, value in row.items() if key not in taken}
    for role, column in fields.columns.items():
        if role in plugin.ROLES and column in row:
            renamed[plugin.ROLES[role]] = row[column]
    role_key, text_key = (fields.tags.get(tag) for tag in KEY_TAGS)
    turns = renamed.get(plugin.ROLES.get("messages", ""))
    if role_key not in (None, "role", "from") and isinstance(turns, list):
        renamed[plugin.ROLES["messages"]] = [
            {"from": t.get(role_key), "value": t.get(text_key or "value")} if isinstance(t, dict) else t for t in turns
        ]
    return renamed


def _check_fields(rows: Sequence[tuple[str, Any]], fields: FieldMap, named: str | None) -> None:
    place = rows[0][0]
    check_tags(fields.tags, place)
    known = sorted({role for plugin in formats() for role in plugin.ROLES})
    own = load(FORMATS, named).ROLES if named is not None else None
    for role, column in fields.columns.items():
        if role not in known:
            raise DataError(
                f"{place}: unknown name {role!r} in `columns`",
                hint=f"{suggestion(role, known)} (it is our name : the file's column, not the other way round)"
                if any(role in row for _, row in rows)
                else suggestion(role, known),
            )
        if own is not None and role not in own:
            raise DataError(
                f"{place}: the format {named} has no {role!r}, which `columns` names", hint=f"it has: {', '.join(own)}"
            )
        if not any(column in row for _, row in rows):
            raise DataError(
                f"{place}: there is no column {column!r}, which `columns` names as {role!r}",
                hint=f"{suggestion(column, list(rows[0][1]))}; the rows have: {names_in(rows[0][1])}",
            )
    if fields.ranking and own is not None and "chosen" not in own:
        raise DataError(f"{place}: the format {named} has no pairs, but `ranking` is set", hint="take ranking out")


def _check_named(rows: Sequence[tuple[str, Any]], fields: FieldMap, named: str) -> None:
    """One message for the whole set when it is of another format; what is wrong with single rows is told row by row."""
    plugin = load(FORMATS, named)
    first: DataError | None = None
    for origin, row in rows:
        try:
            plugin.convert(row, origin, fields)
            return
        except DataError as error:
            first = first or error
    origin, row = rows[0]
    other = next(iter(_fitting(row, fields)), None)
    if (
        first is not None
        and other is not None
        and other[0] != named
        and plugin.detect(_translated(row, plugin, fields)) is None
    ):
        raise DataError(
            f"{origin}: the format was named {named}, but these rows look like {other[0]}: {other[1]}",
            hint=f"name the format {other[0]}, or let it be told from the rows (auto)",
        )
