"""The contract of every export target: a path in, a path out.

A target is one file in ``targets/`` with a ``Config`` class and an ``export`` function; its file name is the word after
``--to``. It writes to a temporary sibling of ``out`` and renames at the end, so that ``out`` is whole or not there.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tunesmith.config.errors import ExportError, UserError
from tunesmith.config.files import sync_folder


@dataclass(frozen=True)
class Report:
    """What an export made: ``out`` (file or folder), its size in bytes and what was checked (``checks``: name -> figure)."""

    out: Path
    bytes: int
    checks: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What was checked, in words: a line for each figure; tables of figures are for programs and left out."""
        told = {name.replace("_", " "): value for name, value in self.checks.items() if not isinstance(value, dict)}
        return [f"{name}: {_in_words(value)}" for name, value in told.items()]


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_in_words, value)) or "none"
    return str(value)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A disk, a quota or a file system that takes no more."""
LOCK = "lock"
"""In a folder that is being filled: one process at a time."""


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
    """A temporary sibling to write to (file or folder, the caller creates it); renamed to ``out`` only on success.

    Raises ExportError when another process works on the same ``out``, or when something has got that name meanwhile.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_of(out)
    lock = FileLock(temporary.with_name(f"{temporary.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ExportError(f"another process is writing {out}", hint="wait for it, or choose another --out") from None
    try:
        _remove(temporary)
        try:
            yield temporary
            if out.exists():
                raise ExportError(f"{out} has appeared meanwhile", hint="choose another --out; nothing was overwritten")
            temporary.rename(out)
        finally:
            _remove(temporary)
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def partial_of(out: Path) -> Path:
    """Where ``out`` is made before it gets its name."""
    return out.parent / f".{out.name}.partial"


@contextmanager
def resumable(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``out`` when the block ends well. What an earlier, interrupted call left is still in it.

    It stays when the block is interrupted (killed, Ctrl-C, a full disk), so that the next call can go on; it is removed when a
    check fails (UserError). Raises ExportError when the disk is full, or when another process works on the same ``out``.
    """
    folder = partial_of(out)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ExportError(f"another process is writing {out}", hint="wait for it, or choose another --out") from None
    try:
        yield folder
        folder.rename(out)  # with the lock held: no other process can begin in it before it has its name
    except UserError:
        _remove(folder)
        raise
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ExportError(
            f"{folder}: there is no room left ({error.strerror})",
            hint="free some space and give the same command again: it goes on after the files that are finished; "
            "or remove this folder",
        ) from error
    finally:
        lock.release()
    (out / LOCK).unlink(missing_ok=True)
    sync_folder(out.parent)


def set_aside(folder: Path, out: Path) -> Path:
    """Give what ``resumable`` made the name ``out`` with ``.failed``: complete, but not what it should be. Returns the new place."""
    place = out.with_name(out.name + ".failed")
    _remove(place)
    (folder / LOCK).unlink(missing_ok=True)
    folder.rename(place)
    return place


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
