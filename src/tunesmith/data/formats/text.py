"""Plain text for pre-training: a ``text`` column, or ``columns: {"prompt": …}`` as LLaMA-Factory's pre-training entries say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.config.errors import DataError
from tunesmith.data.columns import FieldMap, text_of
from tunesmith.data.detect import misfit
from tunesmith.data.example import Text

PRECEDENCE = 70
EXPECTS = "'text'"
ROLES: Mapping[str, str] = {"prompt": "text", "text": "text"}
_MORE = {"prompt", "reference", "ground_truth", "answer", "solution", "verifier"}
"""Columns beside which a text is a part of something else."""


def detect(row: Mapping[str, Any]) -> str | None:
    """Why this row looks like plain text, or None."""
    return None if "text" not in row or _MORE & row.keys() else "it has the key 'text'"


def convert(row: Mapping[str, Any], origin: str, fields: FieldMap) -> Text:
    """One row's text, as it stands. Raises DataError when there is none."""
    column = fields.columns.get("text") or fields.columns.get("prompt") or "text"
    if column not in row:
        raise misfit(row, origin, fields, "text", f"the column {column!r} is missing")
    text = text_of(row, column, origin)
    if not text.strip():
        raise DataError(f"{origin}: the text is empty ({column!r})", hint="fill it in, or take the row out")
    return Text(text, origin)
