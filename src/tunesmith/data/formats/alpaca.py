"""Alpaca: ``instruction``, ``input``, ``output`` and optionally ``system`` and ``history`` (pairs of earlier turns)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.config.errors import DataError
from tunesmith.data.columns import FieldMap, text_of
from tunesmith.data.example import Chat, Message

ROLES: Mapping[str, str] = {
    "prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history",
}  # fmt: skip
"""Names in ``columns`` of a dataset_info.json -> the column each stands for by default."""


def detect(row: Mapping[str, Any]) -> str | None:
    """Why this row looks like Alpaca, or None."""
    return "it has the keys 'instruction' and 'output'" if {"instruction", "output"} <= row.keys() else None


def convert(row: Mapping[str, Any], origin: str, fields: FieldMap) -> Chat:
    """One row as a conversation; ``input`` follows ``instruction`` on a new line. Raises DataError."""
    column = {role: fields.column(role, default) for role, default in ROLES.items()}
    messages: list[Message] = []
    system = text_of(row, column["system"], origin, optional=True)
    if system:
        messages.append(Message("system", system))
    history = row.get(column["history"]) or []
    if not isinstance(history, list):
        raise DataError(f"{origin}: {column['history']!r} should be a list of [question, answer] pairs")
    for i, pair in enumerate(history):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair)):
            raise DataError(
                f"{origin}: entry {i + 1} of {column['history']!r} should be a pair of texts [question, answer]"
            )
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    instruction = text_of(row, column["prompt"], origin)
    query = text_of(row, column["query"], origin, optional=True)
    question = "\n".join(part for part in (instruction, query) if part)
    answer = text_of(row, column["response"], origin)
    if not question.strip():
        raise DataError(f"{origin}: the question is empty ({column['prompt']!r} and {column['query']!r})")
    if not answer.strip():
        raise DataError(f"{origin}: the answer is empty ({column['response']!r})")
    return Chat((*messages, Message("user", question), Message("assistant", answer)), origin=origin)
