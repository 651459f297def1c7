"""Rows with nothing to learn from: no answer, no question, turns without text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tunesmith.data.doctor import base
from tunesmith.data.example import Chat, Feedback, Message, Preference, Prompt, Text


class Check(base.Check):
    """A turn that calls a tool needs no words, and a system turn may be empty."""

    title = "empty or one-sided rows"
    mends = "drops the row"

    def row(self, row: base.Row) -> Iterable[base.Finding]:
        found = _missing(row.example)
        if found:
            yield row.finding("error", found, "complete the row or remove it", fix="drop")


def _missing(example: object) -> str:
    if isinstance(example, Feedback):
        example = example.chat
    if isinstance(example, Text):
        return "" if example.text.strip() else "the text is empty"
    if isinstance(example, Prompt):
        return _silent(example.messages) or ("" if _has(example.messages, "user", "tool") else "nobody asks anything")
    if isinstance(example, Preference):
        for name, turns in (("chosen", example.chosen), ("rejected", example.rejected)):
            if not _has(turns, "assistant"):
                return f"the {name} side has no answer"
        return _silent((*example.prompt, *example.chosen, *example.rejected))
    assert isinstance(example, Chat)
    if not _has(example.messages, "assistant"):
        return "the conversation has no answer to learn"
    if not _has(example.messages, "user", "tool"):
        return "nobody asks anything: the conversation has only answers"
    return _silent(example.messages)


def _has(messages: Sequence[Message], *roles: str) -> bool:
    return any(m.role in roles for m in messages)


def _silent(messages: Sequence[Message]) -> str:
    for number, m in enumerate(messages, 1):
        if m.role in ("user", "assistant") and not (m.content.strip() or m.tool_calls or m.thinking.strip()):
            return f"turn {number} ({m.role}) is empty"
    return ""
