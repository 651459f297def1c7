"""ShareGPT: ``conversations`` (or ``messages``), a list of turns with ``from``/``value`` or ``role``/``content``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.config.errors import DataError
from tunesmith.data.columns import FieldMap, text_of
from tunesmith.data.example import Chat, Message, Role

ROLES: Mapping[str, str] = {"messages": "conversations", "system": "system"}
ALIASES: Mapping[str, Role] = {
    "system": "system",
    "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
}  # fmt: skip
"""Role words in use -> our role. Tool turns are not read yet."""
TAGS = {"user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}


def detect(row: Mapping[str, Any]) -> str | None:
    """Why this row looks like ShareGPT, or None."""
    for key in ("conversations", "messages"):
        if isinstance(row.get(key), list):
            return f"it has a list of turns under {key!r}"
    return None


def convert(row: Mapping[str, Any], origin: str, fields: FieldMap) -> Chat:
    """One row as a conversation. Raises DataError on unknown roles, wrong order, empty turns."""
    default = "conversations" if "conversations" in row else "messages"
    column = fields.column("messages", default)
    turns = row.get(column)
    if not isinstance(turns, list):
        raise DataError(
            f"{origin}: {column!r} should be a list of turns", hint=f"this row has: {', '.join(map(repr, row))}"
        )
    aliases = {**ALIASES, **{fields.tags[tag]: role for tag, role in TAGS.items() if tag in fields.tags}}
    messages: list[Message] = []
    system = text_of(row, fields.column("system"), origin, optional=True)
    if system:
        messages.append(Message("system", system))
    for i, turn in enumerate(turns):
        messages.append(_turn(turn, f"{origin}, turn {i + 1}", fields, aliases))
    _check_order(messages, origin)
    return Chat(tuple(messages), origin=origin)


def _turn(turn: Any, place: str, fields: FieldMap, aliases: Mapping[str, Role | str]) -> Message:
    if not isinstance(turn, dict):
        raise DataError(
            f"{place}: expected a turn such as {{'from': 'human', 'value': '…'}}, found {type(turn).__name__}"
        )
    role_key = fields.tag("role_tag", "from" if "from" in turn else "role")
    text_key = fields.tag("content_tag", "value" if "value" in turn else "content")
    word = turn.get(role_key)
    role = aliases.get(word) if isinstance(word, str) else None
    if role is None:
        raise DataError(f"{place}: the role {word!r} is not known", hint=f"known roles: {', '.join(sorted(aliases))}")
    train = turn.get("train", turn.get("weight"))
    if train is not None and not (isinstance(train, (bool, int, float)) and train in (0, 1)):
        raise DataError(f"{place}: 'train' / 'weight' should be true, false, 0 or 1, found {train!r}")
    return Message(role, text_of(turn, text_key, place), train=None if train is None else bool(train))  # type: ignore[arg-type]


def _check_order(messages: list[Message], origin: str) -> None:
    if any(m.role == "system" for m in messages[1:]):
        raise DataError(f"{origin}: a system turn that is not the first (a `system` column counts as the first)")
    turns = [m for m in messages if m.role != "system"]
    for i, message in enumerate(turns):
        expected = "user" if i % 2 == 0 else "assistant"
        if message.role != expected:
            raise DataError(
                f"{origin}: turn {i + 1} is from the {message.role}, expected the {expected}: turns must alternate"
            )
        if not message.content.strip():
            raise DataError(f"{origin}: turn {i + 1} ({message.role}) is empty")
    if len(turns) < 2:
        raise DataError(f"{origin}: the conversation has no answer to learn")
