"""Stopped by a person (Ctrl-C) or a program (SIGTERM): what is kept then, and how to go on, travels with the interruption to ``cli``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.export.base import AGAIN, WORKED_IN

RESUMED = (".partial", ".blocks", AGAIN)
"""Endings of the hidden folders in which an export goes on where it was."""


@contextmanager
def in_words(words: Callable[[], str]) -> Iterator[None]:
    """A KeyboardInterrupt that leaves the block says ``words()``, unless it says something already."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if not stop.args:
            stop.args = (words(),)
        raise


def kept_in(*folders: Path) -> str:
    """What exports of this process that were interrupted have left in ``folders`` to go on with."""
    found = [
        path
        for folder in dict.fromkeys(folders)
        if folder.is_dir()
        for path in sorted(folder.glob(".*"))
        if path.suffix in RESUMED and path.absolute() in WORKED_IN and path.is_dir() and any(path.iterdir())
    ]
    if not found:
        return "nothing half-made is left, what was finished before stays; the same command begins anew"
    return f"what is finished is kept in {', '.join(map(str, found))}; the same command goes on there"
