"""Turns and the columns beside them (system, tools, media) -> a checked example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from tunesmith.config.errors import DataError
from tunesmith.data.columns import FieldMap, text_of
from tunesmith.data.example import Chat, Message, Preference
from tunesmith.data.media import ROLES as MEDIA_ROLES
from tunesmith.data.media import check_column, place_media, read_media
from tunesmith.data.order import check_order, with_system
from tunesmith.data.tools import read_tools
from tunesmith.data.turns import Turns

BESIDE: Mapping[str, str] = {"system": "system", "tools": "tools", **MEDIA_ROLES}
"""Names in ``columns`` of what stands beside the turns, the same in every format that has turns."""


def joined(*parts: Turns) -> Turns:
    """Lists of turns one after the other."""
    return Turns(tuple(m for p in parts for m in p.messages), tuple(m for p in parts for m in p.media))


def chat_of(
    turns: Turns,
    row: Mapping[str, Any],
    origin: str,
    fields: FieldMap,
    *,
    ends: Literal["answer", "question"] = "answer",
    place: str = "",
) -> Chat:
    """The conversation with its system prompt, tools and media; ``place`` names it in messages. Raises DataError."""
    media = read_media(row, origin, fields, turns.media)
    check_column(turns.messages, row, origin, fields)
    messages = place_media(turns.messages, media, origin)
    check_order(messages, place or origin, ends=ends)
    system = fields.find(row, "system", "system")
    messages = with_system(messages, text_of(row, system, origin, optional=True) if system else "", origin)
    tools = fields.find(row, "tools", "tools", "functions")
    return Chat(messages, read_tools(row[tools], f"{origin}: {tools!r}") if tools else (), media, origin)


def answered(asked: Chat, said: Turns, place: str) -> tuple[Message, ...]:
    """The turns that follow a prompt, checked; ``place`` names them in messages. Raises DataError."""
    if said.media:
        raise DataError(f"{place}: media in the answer", hint="models answer with text; media belong into the prompt")
    check_order(said.messages, place, after=asked.messages[-1])
    return said.messages


def pair_of(
    prompt: Turns, chosen: Turns, rejected: Turns, row: Mapping[str, Any], origin: str, fields: FieldMap
) -> Preference:
    """Two answers to one prompt. Raises DataError."""
    asked = chat_of(prompt, row, origin, fields, ends="question", place=f"{origin}, prompt")
    better, worse = answered(asked, chosen, f"{origin}, 'chosen'"), answered(asked, rejected, f"{origin}, 'rejected'")
    return Preference(asked.messages, better, worse, asked.tools, asked.media, origin)
