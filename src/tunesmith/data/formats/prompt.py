"""Prompts whose answer is left to the model (PPO, GRPO): ``prompt`` as a text or as messages, perhaps with a right answer
(``reference``, ``ground_truth``, ``answer`` or ``solution``: the first that is filled) or a ``verifier`` that tells how answers are judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.config.errors import DataError
from tunesmith.data.assemble import BESIDE, chat_of
from tunesmith.data.columns import FieldMap, found, not_text
from tunesmith.data.detect import misfit
from tunesmith.data.example import Prompt
from tunesmith.data.strict_json import inner
from tunesmith.data.turns import read_said

PRECEDENCE = 80
EXPECTS = "'prompt' (and 'reference', 'ground_truth', 'answer', 'solution' or 'verifier')"
ROLES: Mapping[str, str] = {"prompt": "prompt", "reference": "reference", "verifier": "verifier", **BESIDE}
REFERENCES = ("reference", "ground_truth", "answer", "solution")
_ANSWERED = {"completion", "response", "output", "chosen", "rejected"}


def detect(row: Mapping[str, Any]) -> str | None:
    """Why this row looks like a prompt, or None."""
    if "prompt" not in row or _ANSWERED & row.keys():
        return None
    beside = next((c for c in (*REFERENCES, "verifier") if row.get(c) is not None), None)
    return "it has the key 'prompt' and no answer" if beside is None else f"it has the keys 'prompt' and {beside!r}"


def convert(row: Mapping[str, Any], origin: str, fields: FieldMap) -> Prompt:
    """One row as a prompt. A number as reference becomes its text. Raises DataError."""
    column = fields.find(row, "prompt", "prompt", "question", "problem", "messages")
    if column is None:
        raise misfit(row, origin, fields, "prompt", f"the column {fields.column('prompt')!r} is missing")
    turns = read_said(row[column], f"{origin}: {column!r}", fields, "user")
    chat = chat_of(turns, row, origin, fields, ends="question")
    return Prompt(
        chat.messages, _reference(row, origin, fields), _verifier(row, origin, fields), chat.tools, chat.media, origin
    )


def _reference(row: Mapping[str, Any], origin: str, fields: FieldMap) -> str | None:
    column = fields.find(row, "reference", *REFERENCES)
    value = None if column is None else row[column]
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:g}" if isinstance(value, float) and value.is_integer() else str(value)
    raise not_text(value, f"{origin}: {column!r}")


def _verifier(row: Mapping[str, Any], origin: str, fields: FieldMap) -> dict[str, Any] | None:
    column = fields.find(row, "verifier", "verifier")
    value = None if column is None else row[column]
    if isinstance(value, str):
        value = (
            {"kind": value}
            if not value.lstrip().startswith("{")
            else inner(value, f"{origin}: {column!r}", 'expected {"kind": "math", …}')
        )
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise DataError(
            f"{origin}: {column!r} does not tell how answers are judged: found {found(value)}",
            hint='expected the name of a verifier, or {"kind": "math", …}',
        )
    return value
