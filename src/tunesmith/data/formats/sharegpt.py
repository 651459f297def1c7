"""ShareGPT: ``conversations``, a list of turns with ``from`` and ``value``; a pair with ``chosen`` and ``rejected`` beside it,
a verdict with ``kto_tag``. Turns with ``role`` and ``content`` are read too, as LLaMA-Factory's ``tags`` make them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.columns import FieldMap
from tunesmith.data.conversations import ROLES as BESIDE_TURNS
from tunesmith.data.conversations import convert_turns, turn_column
from tunesmith.data.example import Chat, Feedback, Preference

PRECEDENCE = 30
EXPECTS = "'conversations' with turns of 'from' and 'value'"
ROLES: Mapping[str, str] = {"messages": "conversations", **BESIDE_TURNS}


def detect(row: Mapping[str, Any]) -> str | None:
    """Why this row looks like ShareGPT, or None."""
    column = turn_column(row, "from", "conversations")
    return None if column is None else f"it has a list of turns with 'from' under {column!r}"


def convert(row: Mapping[str, Any], origin: str, fields: FieldMap) -> Chat | Preference | Feedback:
    """One row as a conversation, or a pair, or one with a verdict. Raises DataError on unknown roles, wrong order, empty turns."""
    return convert_turns(row, origin, fields, "sharegpt", "conversations")
