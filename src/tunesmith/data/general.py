"""The bundled general text, English and Chinese: to measure any model on, and to calibrate one that has no data of its own.

The two parts share no passage, so that no model is measured on what it was calibrated with.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tunesmith.data.example import Chat, Message, Text

FILE = Path(__file__).parent / "bundled" / "general_text.json"


@cache
def _whole() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def passages_to_measure() -> dict[str, tuple[str, ...]]:
    """Passages by language (``en``, ``zh``)."""
    return {language: tuple(texts) for language, texts in _whole()["measure"].items()}


def examples_to_calibrate() -> list[Chat | Text]:
    """Conversations and passages, languages in turn."""
    found: list[Chat | Text] = []
    for i, row in enumerate(_whole()["calibrate"]):
        origin = f"general text {i + 1}"
        if isinstance(row, str):
            found.append(Text(row, origin))
        else:
            roles = ("user", "assistant") * len(row)
            found.append(Chat(tuple(Message(role, text) for role, text in zip(roles, row)), origin=origin))  # type: ignore[arg-type]
    return found


def questions() -> tuple[str, ...]:
    """Questions whose answers are compared when a model has no data of its own."""
    return tuple(_whole()["questions"])
