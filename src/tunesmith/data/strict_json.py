"""JSON as the standard writes it: what Python's parser lets pass and would be lost or break later is told."""

from __future__ import annotations

import json
from typing import Any


class Flaw(ValueError):
    """Well-formed but not what it should be: a key twice in one object, NaN, half a surrogate pair."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Flaw(f"the key {twice!r} stands twice in one object")
    return found


def _no_constant(word: str) -> Any:
    raise Flaw(f"{word} is no JSON value; write null or a number")


STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
LENIENT = json.JSONDecoder()


def decode_at(text: str, start: int) -> tuple[Any, int]:
    """The value at ``start`` and where it ends; a Flaw in place of the value when it has one.

    Raises json.JSONDecodeError, and RecursionError when it is nested too deeply.
    """
    value: Any
    try:
        value, end = STRICT.raw_decode(text, start)
    except Flaw as flaw:
        value, end = flaw, LENIENT.raw_decode(text, start)[1]
    if not isinstance(value, Flaw) and _half_pair(text, start, end, value):
        value = Flaw("a \\ud… escape stands alone; it is half a character")
    return value, end


def decode(text: str) -> Any:
    """One value and nothing else, or a Flaw. Raises as ``decode_at``."""
    start = len(text) - len(text.lstrip(" \t\r\n"))
    value, end = decode_at(text, start)
    if text[end:].strip(" \t\r\n"):
        raise json.JSONDecodeError("more after the end of the value", text, end)
    return value


def _half_pair(text: str, start: int, end: int, value: Any) -> bool:
    if text.find("\\ud", start, end) < 0 and text.find("\\uD", start, end) < 0:
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
