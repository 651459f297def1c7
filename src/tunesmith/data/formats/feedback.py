"""Answers found good or bad (KTO): ``prompt``, ``completion`` and ``label``; prompt and completion as texts or as messages.

Reference: Ethayarajh et al., 2024, arXiv:2402.01306.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.assemble import BESIDE
from tunesmith.data.columns import FieldMap, truth, truth_of
from tunesmith.data.detect import misfit
from tunesmith.data.example import Feedback
from tunesmith.data.formats.completion import exchange

PRECEDENCE = 20
EXPECTS = "'prompt', 'completion' and 'label' (true or false)"
ROLES: Mapping[str, str] = {"prompt": "prompt", "completion": "completion", "kto_tag": "label", **BESIDE}


def detect(row: Mapping[str, Any]) -> str | None:
    """Why this row looks like an answer with a verdict, or None."""
    tag = next((t for t in ("label", "kto_tag") if truth(row.get(t)) is not None), None)
    if tag is None or not {"prompt", "completion"} <= row.keys():
        return None
    return f"it has the keys 'prompt', 'completion' and {tag!r} (true or false)"


def convert(row: Mapping[str, Any], origin: str, fields: FieldMap) -> Feedback:
    """One row as a conversation with its verdict. Raises DataError."""
    tag = fields.find(row, "kto_tag", "label", "kto_tag")
    if tag is None:
        raise misfit(row, origin, fields, "feedback", f"the column {fields.column('kto_tag', 'label')!r} is missing")
    chat = exchange(row, origin, fields, "feedback")
    return Feedback(chat, truth_of(row[tag], f"{origin}: {tag!r}"))
