"""A list of turns (``from``/``value`` or ``role``/``content``) -> messages, one by one; their order is checked in ``order``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.config.errors import DataError
from tunesmith.data.columns import FieldMap, found, not_text, truth_of
from tunesmith.data.content import read_content
from tunesmith.data.example import Message
from tunesmith.data.media import Inline
from tunesmith.data.roles import speaker
from tunesmith.data.thinking import without_empty_block
from tunesmith.data.tools import CALL_HINT, read_calls, turn_calls


@dataclass(frozen=True)
class Turns:
    """The messages of one list, one per entry, and the media in them."""

    messages: tuple[Message, ...]
    media: tuple[Inline, ...] = ()


def is_turns(value: Any) -> bool:
    """Whether a value is meant as a list of turns (or one turn)."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value))


def read_turns(value: Any, what: str, fields: FieldMap) -> Turns:
    """The turns of a list (one turn alone is a list of one); ``what`` names its place. Raises DataError."""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise DataError(
            f"{what} should be a list of turns, found {found(value)}",
            hint="expected [{'role': 'user', 'content': '…'}, …] or [{'from': 'human', 'value': '…'}, …]",
        )
    messages: list[Message] = []
    media: list[Inline] = []
    for i, turn in enumerate(value):
        message, inline = _turn(turn, f"{what}, turn {i + 1}", fields)
        messages.append(message)
        media += inline
    return Turns(tuple(messages), tuple(media))


def read_said(value: Any, what: str, fields: FieldMap, role: Literal["user", "assistant"]) -> Turns:
    """A text, said by ``role``, or a list of turns. Raises DataError."""
    if isinstance(value, str):
        return read_turns([{"role": role, "content": value}], what, FieldMap())
    if value is None or not isinstance(value, (dict, list)):
        raise not_text(value, what)
    return read_turns(value, what, fields)


def _turn(turn: Any, place: str, fields: FieldMap) -> tuple[Message, tuple[Inline, ...]]:
    if not isinstance(turn, dict):
        raise DataError(
            f"{place}: expected a turn such as {{'from': 'human', 'value': '…'}}, found {found(turn)}",
            hint="each turn is an object with who speaks and what is said",
        )
    role_key = fields.tag("role_tag", _key(turn, "from", "role"))
    if role_key not in turn:
        raise DataError(
            f"{place}: it has no {role_key!r}, which tells who speaks",
            hint=f"this turn has: {', '.join(map(repr, turn)) or 'nothing'}; tell other names with `tags` (role_tag, content_tag)",
        )
    role = speaker(turn[role_key], fields, place)
    text_key = fields.tag("content_tag", _key(turn, "value", "content"))
    train = _train(turn, place)
    if role == "call":
        return _call_turn(turn, text_key, place, train), ()
    calls = turn_calls(turn, place)
    if calls and role != "assistant":
        raise DataError(f"{place}: tool calls in a turn of the {role}", hint="only the assistant calls tools")
    assistant = role == "assistant"
    content = read_content(turn, text_key, place, assistant=assistant, optional=bool(calls))
    name = _word(turn, "name", place) if role == "tool" else ""
    answers = _word(turn, "tool_call_id", place) if role == "tool" else ""
    message = Message(role, content.text, calls, train, content.thinking, name, answers)
    return message, content.media


def _key(turn: Mapping[str, Any], *keys: str) -> str:
    """The first of ``keys`` that is filled, else the first that is there, else the last."""
    for key in keys:
        if turn.get(key) is not None:
            return key
    return next((key for key in keys if key in turn), keys[-1])


def _call_turn(turn: Mapping[str, Any], key: str, place: str, train: bool | None) -> Message:
    """A turn whose text is tool calls as JSON (LLaMA-Factory's function_call), after a ``<think>`` block perhaps."""
    value = turn.get(key)
    content = read_content(
        turn if isinstance(value, str) else {**turn, key: None}, key, place, assistant=True, optional=True
    )
    if isinstance(value, str):
        calls = read_calls(without_empty_block(content.text), place)
    else:
        calls = turn_calls(turn, place) if value is None else read_calls(value, place)
    if not calls:
        raise DataError(f"{place}: a function call without a call in {key!r}", hint=CALL_HINT)
    return Message("assistant", "", calls, train, content.thinking)


def _train(turn: Mapping[str, Any], place: str) -> bool | None:
    told = {key: turn[key] for key in ("train", "weight") if turn.get(key) is not None}
    values = {truth_of(value, f"{place}: {' / '.join(map(repr, told))}") for value in told.values()}
    if len(values) > 1:
        raise DataError(f"{place}: 'train' and 'weight' contradict each other", hint="keep one of them")
    return values.pop() if values else None


def _word(turn: Mapping[str, Any], key: str, place: str) -> str:
    value = turn.get(key)
    if value is None or isinstance(value, str):
        return value or ""
    raise not_text(value, f"{place}: {key!r}")
