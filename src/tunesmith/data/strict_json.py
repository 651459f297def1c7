"""JSON as the standard writes it: what Python's parser lets pass and would be lost or break later is told."""

from __future__ import annotations

import json
from typing import Any

from tunesmith.config.errors import DataError

TOO_DEEP = "a row is an object of texts and short lists; look at what wrote this file"

MOST_DIGITS = 400
DEEPEST = 100
"""Levels of lists and objects in a row; schemas of tools have about ten."""


class Flaw(ValueError):
    """Well-formed but not what it should be: a key twice in one object, NaN, half a surrogate pair."""

    def __init__(self, message: str, mend: str) -> None:
        super().__init__(message)
        self.mend = mend


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Flaw(
            f"the key {twice!r} stands twice in one object", "keep the one that is meant, and take the other out"
        )
    return found


def _no_constant(word: str) -> Any:
    raise Flaw(f"{word} is no JSON value", "write null or a number")


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:  # Python refuses to read more than 4,300, with an error that is no JSON error
        raise Flaw(f"a whole number of {len(digits):,} digits", "shorten it, or write it as text")
    return int(digits)


STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_integer)
LENIENT = json.JSONDecoder(parse_int=str)


def decode_at(text: str, start: int) -> tuple[Any, int]:
    """The value at ``start`` and where it ends; a Flaw in place of the value when it has one.

    Raises json.JSONDecodeError, and RecursionError when it is nested too deeply.
    """
    value: Any
    try:
        value, end = STRICT.raw_decode(text, start)
    except Flaw as flaw:
        value, end = flaw, LENIENT.raw_decode(text, start)[1]
    if not isinstance(value, Flaw) and _depth(value) > DEEPEST:
        value = Flaw(f"nested more than {DEEPEST} deep", TOO_DEEP)
    if not isinstance(value, Flaw) and _half_pair(text, start, end, value):
        value = Flaw("a \\ud… escape stands alone; it is half a character", "write the whole character, or take it out")
    return value, end


def _depth(value: Any) -> int:
    """Levels of lists and objects, counted level by level."""
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, (dict, list)) and v]:
        depth += 1
        if depth > DEEPEST:
            break
        level = [child for v in level for child in (v.values() if isinstance(v, dict) else v)]
    return depth


def decode(text: str) -> Any:
    """One value and nothing else, or a Flaw. Raises as ``decode_at``."""
    start = len(text) - len(text.lstrip(" \t\r\n"))
    value, end = decode_at(text, start)
    if text[end:].strip(" \t\r\n"):
        raise json.JSONDecodeError("more after the end of the value", text, end)
    return value


def inner(text: str, place: str, hint: str) -> Any:
    """JSON that is itself a text in a row. Raises DataError, which names ``place``, for what is wrong with it."""
    try:
        value = decode(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not valid JSON: {error}: {text.strip()[:60]!r}", hint=hint) from None
    if isinstance(value, Flaw):
        raise DataError(f"{place}: {value}: {text.strip()[:60]!r}", hint=value.mend)
    return value


def _half_pair(text: str, start: int, end: int, value: Any) -> bool:
    if text.find("\\ud", start, end) < 0 and text.find("\\uD", start, end) < 0:
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
