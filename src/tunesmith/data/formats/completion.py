"""A prompt and its completion, ``prompt`` and ``completion``, as texts or as messages. Only the completion is learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tunesmith.data.assemble import BESIDE, answered, chat_of
from tunesmith.data.columns import FieldMap
from tunesmith.data.detect import misfit
from tunesmith.data.example import Chat
from tunesmith.data.turns import read_said

PRECEDENCE = 60
EXPECTS = "'prompt' and 'completion'"
ROLES: Mapping[str, str] = {"prompt": "prompt", "completion": "completion", **BESIDE}


def detect(row: Mapping[str, Any]) -> str | None:
    """Why this row looks like a prompt with its completion, or None."""
    return "it has the keys 'prompt' and 'completion'" if {"prompt", "completion"} <= row.keys() else None


def convert(row: Mapping[str, Any], origin: str, fields: FieldMap) -> Chat:
    """One row as a conversation whose prompt is not learned. Raises DataError."""
    return exchange(row, origin, fields, "completion")


def exchange(row: Mapping[str, Any], origin: str, fields: FieldMap, name: str) -> Chat:
    """The columns ``prompt`` and ``completion`` of a row of format ``name`` as one conversation. Raises DataError."""
    columns = [fields.find(row, role, role) for role in ("prompt", "completion")]
    for role, column in zip(("prompt", "completion"), columns):
        if column is None:
            raise misfit(row, origin, fields, name, f"the column {fields.column(role)!r} is missing")
    asked, said = (
        read_said(row[c], f"{origin}: {c!r}", fields, who)  # type: ignore[index, arg-type]
        for c, who in zip(columns, ("user", "assistant"))
    )
    prompt = chat_of(asked, row, origin, fields, ends="question", place=f"{origin}, {columns[0]!r}")
    answer = answered(prompt, said, f"{origin}, {columns[1]!r}")
    before = tuple(replace(m, train=False) if m.train is None else m for m in prompt.messages)
    return replace(prompt, messages=(*before, *answer))
