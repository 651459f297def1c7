"""How a data set's own column and role names map to what a format expects (``columns`` and ``tags``)."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.config.errors import DataError
from tunesmith.data.strict_json import Flaw, decode


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

    def find(self, row: Mapping[str, Any], name: str, *defaults: str) -> str | None:
        """The column of ``row`` that holds ``name``, or None when the row has none.

        What ``columns`` names is taken alone. Else the first of ``defaults`` that the row has (one that is filled before
        one that is null) and that ``columns`` does not give to another name.
        """
        if self.columns.get(name):
            return self.columns[name] if self.columns[name] in row else None
        taken = self.columns.values()
        found = None
        for default in defaults:
            if default in row and default not in taken:
                if row[default] is not None:
                    return default
                found = found or default
        return found


def text_of(row: Mapping[str, Any], column: str, origin: str, *, optional: bool = False) -> str:
    """The text in ``column``; numbers are not text. Raises DataError naming row, column and what was found."""
    value = row.get(column)
    if value is None and optional:
        return ""
    if isinstance(value, str):
        return value
    if column not in row:
        raise DataError(
            f"{origin}: the column {column!r} is missing",
            hint=f"this row has: {names_in(row)}; map other names with `columns`",
        )
    raise not_text(value, f"{origin}: {column!r}")


def list_of(value: Any, place: str) -> Any:
    """A list, also when it is written as JSON text (as CSV files have it); any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            read = decode(value)
        except (ValueError, RecursionError):
            return value
        if isinstance(read, Flaw):
            raise DataError(f"{place}: {read}: {value.strip()[:60]!r}", hint=read.mend)
        return read
    return value


def not_text(value: Any, what: str) -> DataError:
    """The error for a value that should be text; ``what`` names its place."""
    if value is None:
        hint = "fill it in, or take the row out"
    elif isinstance(value, (list, dict)):
        hint = "expected one text; lists of turns are read under `conversations`, `messages`, `prompt`, `chosen`, `rejected`"
    else:
        hint = f'write it as text: "{str(value)[:20]}"'
    return DataError(f"{what} should be text, found {found(value)}", hint=hint)


def found(value: Any) -> str:
    """A value as messages show it: its type and its first characters."""
    if value is None:
        return "null"
    text = _SHORT.repr(value) if isinstance(value, (list, tuple, dict)) else str(value)[:60]
    return f"{type(value).__name__}: {text[:60]!r}"


_SHORT = reprlib.Repr()  # a value may be long, and nested deeply
_SHORT.maxlevel = _SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = 3


def names_in(row: Mapping[str, Any]) -> str:
    """The column names of a row, for messages."""
    return ", ".join(repr(key) for key in list(row)[:20]) or "none"


_TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def truth(value: Any) -> bool | None:
    """A yes or no: true / false, 1 / 0, or these as text (as CSV files have them); None when it is neither."""
    return _TRUTH.get(str(value).strip().lower()) if isinstance(value, (bool, float, str)) or value in (0, 1) else None


def truth_of(value: Any, what: str) -> bool:
    """The same, or DataError."""
    known = truth(value)
    if known is None:
        raise DataError(f"{what} should be true, false, 0 or 1, found {found(value)}", hint="write true or false")
    return known
