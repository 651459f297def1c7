"""Where the words of the data stand in a rendered conversation.

The conversation is rendered again with a marker for every text that comes from the data: what stands between the markers
is the template's own. The rendered text must then be those literals with the words between them, character for character.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Span = tuple[int, int]
_JSON_TEXT = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?')
"""A text in JSON; with a colon after it, it is a key."""


@dataclass(frozen=True)
class Mark:
    """One text of turn ``turn``: its content, its thinking, or a text inside the arguments of its tool calls."""

    turn: int
    part: Literal["content", "thinking", "call"]
    value: str


@dataclass(frozen=True)
class Slot:
    """A place in the rendered text where a mark's words stand, ``[start, end)``."""

    mark: Mark
    start: int
    end: int


class Marked:
    """``messages`` with a marker in place of each text of ``turns``; the markers occur nowhere in ``text``."""

    def __init__(self, messages: Sequence[dict[str, Any]], turns: Collection[int], text: str) -> None:
        self.marks: list[Mark] = []
        stem = "zq"
        while stem in text:
            stem += "q"
        self._stem = stem
        self.messages = [self._message(i, m) if i in turns else m for i, m in enumerate(messages)]

    def shown(self, other: str) -> tuple[list[str], list[Mark]]:
        """The rendered marked text taken apart: n + 1 literals and the n marks between them."""
        parts = re.split(rf"{self._stem}(\d+)z", other)
        return parts[::2], [self.marks[int(number)] for number in parts[1::2]]

    def _mark(self, turn: int, part: Literal["content", "thinking", "call"], value: str) -> str:
        if not value.strip():  # templates ask whether there is content; an empty text must stay empty
            return value
        self.marks.append(Mark(turn, part, value))
        return f"{self._stem}{len(self.marks) - 1}z"

    def _message(self, turn: int, message: dict[str, Any]) -> dict[str, Any]:
        marked = {**message}
        if message.get("reasoning_content"):
            marked["reasoning_content"] = self._mark(turn, "thinking", message["reasoning_content"])
        if isinstance(message.get("content"), str):
            marked["content"] = self._mark(turn, "content", message["content"])
        if message.get("tool_calls"):
            marked["tool_calls"] = [self._call(turn, call) for call in message["tool_calls"]]
        return marked

    def _call(self, turn: int, call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        arguments = function.get("arguments", {})
        mark = self._leaves_of_text if isinstance(arguments, str) else self._leaves
        return {**call, "function": {**function, "arguments": mark(turn, arguments)}}

    def _leaves_of_text(self, turn: int, arguments: str) -> str:
        """Arguments as JSON text, written as they are but for the texts in them."""
        try:
            json.loads(arguments)
        except json.JSONDecodeError:
            return self._mark(turn, "call", arguments)

        def marked(text: re.Match[str]) -> str:
            return text[0] if text[2] else json.dumps(self._mark(turn, "call", json.loads(text[1])))

        return _JSON_TEXT.sub(marked, arguments)

    def _leaves(self, turn: int, value: Any) -> Any:
        if isinstance(value, str):
            return self._mark(turn, "call", value)
        if isinstance(value, dict):
            return {key: self._leaves(turn, item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._leaves(turn, item) for item in value]
        return value


def align(text: str, literals: Sequence[str], marks: Sequence[Mark]) -> list[Slot] | None:
    """The slots of ``marks`` in ``text``; None when it is not the literals with the marks' words between them.

    Words may have lost white space at their ends (templates trim) or be escaped as in JSON (arguments, tool results).
    """
    if not text.startswith(literals[0]):
        return None
    slots = []
    at = len(literals[0])
    for i, mark in enumerate(marks):
        following = literals[i + 1]
        last = i == len(marks) - 1
        for words in writings(mark.value):
            end = at + len(words)
            if text.startswith(words, at) and (text[end:] == following if last else text.startswith(following, end)):
                slots.append(Slot(mark, at, end))
                at = end + len(following)
                break
        else:
            return None
    return slots if at == len(text) else None


def writings(value: str) -> list[str]:
    """How a template may write a text: as it is, without white space at its ends, or as in JSON."""
    trimmed = [
        value,
        value.strip(),
        value.lstrip("\n"),
        value.rstrip("\n"),
        value.strip("\n"),
        value.lstrip(),
        value.rstrip(),
    ]
    escaped = [json.dumps(v, ensure_ascii=ascii_only)[1:-1] for v in trimmed[:2] for ascii_only in (False, True)]
    return list(dict.fromkeys([*trimmed, *escaped]))
