"""OpenAI messages: ``messages``, a list of turns with ``role`` and ``content``, tool calls and content parts; a pair with
``chosen`` and ``rejected`` beside it, a verdict with ``kto_tag``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.columns import FieldMap
from tunesmith.data.conversations import ROLES as BESIDE_TURNS
from tunesmith.data.conversations import convert_turns, turn_column
from tunesmith.data.example import Chat, Feedback, Preference

PRECEDENCE = 40
EXPECTS = "'messages' with turns of 'role' and 'content'"
ROLES: Mapping[str, str] = {"messages": "messages", **BESIDE_TURNS}


def detect(row: Mapping[str, Any]) -> str | None:
    """Why this row looks like OpenAI messages, or None."""
    column = turn_column(row, "role", "messages")
    return None if column is None else f"it has a list of turns with 'role' under {column!r}"


def convert(row: Mapping[str, Any], origin: str, fields: FieldMap) -> Chat | Preference | Feedback:
    """One row as a conversation, or a pair, or one with a verdict. Raises DataError on unknown roles, wrong order, empty turns."""
    return convert_turns(row, origin, fields, "openai", "messages")
