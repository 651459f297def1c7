"""The contract of every export target: a path in, a path out.

A target is one file in ``targets/`` with a ``Config`` class and an ``export`` function; its file name is the word after
``--to``. It writes to a temporary sibling of ``out`` and renames at the end, so that ``out`` is whole or not there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError


@dataclass(frozen=True)
class Report:
    """What an export made: ``out`` (file or folder), its size in bytes and what was checked (``checks``: name -> figure)."""

    out: Path
    bytes: int
    checks: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def check_target(out: Path, needed_bytes: int) -> None:
    """Refuse to overwrite, and refuse to start what the disk cannot hold. Raises ExportError."""
    if out.exists():
        raise ExportError(f"{out} exists already", hint="choose another --out, or remove it first; nothing was changed")
    folder = next(p for p in [out.parent, *out.parent.parents] if p.exists())
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ExportError(
            f"the export needs about {needed_bytes / 2**30:.2f} GiB, {folder} has {free / 2**30:.2f} GiB free",
            hint="free some space, or choose --out on another disk; nothing was written",
        )


@contextmanager
def whole_or_nothing(out: Path) -> Iterator[Path]:
    """A temporary sibling to write to (file or folder, the caller creates it); renamed to ``out`` only on success."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f".{out.name}.partial"
    _remove(temporary)
    try:
        yield temporary
        temporary.rename(out)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
