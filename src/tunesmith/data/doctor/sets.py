"""What the doctor needs of an opened data set, and how many rows it may have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from tunesmith.config.errors import DataError
from tunesmith.data.example import Example

_PLACE = re.compile(r"\A(.+?:(?:row )?\d+)(?=[:, ])", re.DOTALL)


class Source(Protocol):
    """``data.load.OpenSet``: rows may be read as often as wanted, always in the same order."""

    @property
    def name(self) -> str: ...

    @property
    def place(self) -> str: ...

    @property
    def format(self) -> str: ...

    @property
    def reason(self) -> str: ...

    def raw(self) -> Iterator[tuple[str, Any]]: ...

    def examples(self) -> Iterator[Example | DataError]: ...


def place_of(error: DataError, name: str, number: int) -> str:
    """The ``file:row`` that an error begins with, else ``name:row N``."""
    found = _PLACE.match(error.message)
    return found[1] if found else f"{name}:row {number}"


def row_estimate(path: Path | None) -> int | None:
    """Rows of a plain .jsonl file, by its line ends; None for what cannot be told in a moment."""
    if path is None or path.suffix != ".jsonl" or not path.is_file():
        return None
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")) + 1
