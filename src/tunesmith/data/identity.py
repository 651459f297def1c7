"""When two examples are the same: their content without where it came from, as a hash of 16 bytes."""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from tunesmith.data.example import Example


def identity(example: Example) -> bytes:
    """BLAKE2b-128 of kind and content; ``origin`` does not count. Equal content gives equal bytes in every process."""
    return hashlib.blake2b(repr(_content(example)).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _content(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple([_content(v) for v in value]) if value else ()
    if isinstance(value, dict):
        return sorted((str(key), _content(v)) for key, v in value.items())
    names = _compared(type(value))  # type: ignore[arg-type]  # classes are hashable
    return (type(value).__name__, *[_content(getattr(value, name)) for name in names]) if names else value


@cache
def _compared(cls: Any) -> tuple[str, ...]:
    """The fields of a record that make it what it is; none for what is no record."""
    return tuple(f.name for f in fields(cls) if f.compare) if is_dataclass(cls) else ()
