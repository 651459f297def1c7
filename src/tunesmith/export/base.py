"""The contract of every export target: a path in, a path out.

A target is one file in ``targets/`` with a ``Config`` class and an ``export`` function; its file name is the word after
``--to``. It writes to a temporary sibling of ``out`` and renames at the end, so that ``out`` is whole or not there.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tunesmith.config.errors import ExportError, UserError
from tunesmith.config.files import sync_folder

FOR_PROGRAMS = ("stop_token_ids", "unexpected", "joined")
"""Figures of a report that people cannot do anything with."""


@dataclass(frozen=True)
class Report:
    """What an export made: ``out`` (file or folder), its size in bytes and what was checked (``checks``: name -> figure)."""

    out: Path
    bytes: int
    checks: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What was checked, in words: a line for each figure; tables of figures are for programs and left out."""
        shown = {name: value for name, value in self.checks.items() if name not in FOR_PROGRAMS}
        told = {name.replace("_", " "): value for name, value in shown.items() if not isinstance(value, dict)}
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
WORKED_IN: set[Path] = set()
"""Hidden folders in which this process has begun or gone on with something that may be gone on with later."""
AGAIN = ".again"
"""Ends the hidden folder in which an export is made whose name is taken."""


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
    own = not out.parent.exists()
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_of(out)
    try:
        with alone(temporary.with_name(f"{temporary.name}.lock"), out):
            remove(temporary)
            try:
                yield temporary
                if out.exists():
                    raise ExportError(
                        f"{out} has appeared meanwhile", hint="choose another --out; nothing was overwritten"
                    )
                _sync(temporary)
                temporary.rename(out)
                sync_folder(out.parent)
            finally:
                remove(temporary)
    finally:
        if own:
            with suppress(OSError):  # something is in it
                out.parent.rmdir()


@contextmanager
def alone(lock_file: Path, out: Path) -> Iterator[None]:
    """One process at a time makes ``out``; the lock's file goes at the end. Raises ExportError."""
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ExportError(f"another process is writing {out}", hint="wait for it, or choose another --out") from None
    try:
        yield
    finally:
        lock_file.unlink(missing_ok=True)
        lock.release()


@contextmanager
def scratch(out: Path) -> Iterator[Path]:
    """A hidden folder beside ``out`` for what is needed while it is made, gone afterwards; asked for inside ``whole_or_nothing``."""
    folder = out.parent / f".{out.name}.staging"
    remove(folder)  # of a call that was killed
    try:
        folder.mkdir()
        yield folder
    finally:
        remove(folder)


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
    WORKED_IN.add(folder.absolute())
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ExportError(f"another process is writing {out}", hint="wait for it, or choose another --out") from None
    try:
        yield folder
        _sync(folder)
        folder.rename(out)  # with the lock held: no other process can begin in it before it has its name
    except UserError:
        remove(folder)
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


def set_aside(work: Path, out: Path) -> Path:
    """Give what was to become ``out`` its name with ``.failed``: complete, but not what it should be. Returns the new place."""
    place = beside(out, ".failed")
    remove(place)
    if work.is_dir():
        (work / LOCK).unlink(missing_ok=True)
    work.rename(place)
    return place


def proved(prove: Callable[[Path], dict[str, Any]], work: Path, out: Path) -> dict[str, Any]:
    """What ``prove`` finds out about the finished ``work`` before it becomes ``out``. Raises NotProvedError; it is then kept aside."""
    try:
        return prove(work)
    except UserError as error:
        place = set_aside(work, out)
        what = "folder" if place.is_dir() else "file"
        raise NotProvedError(
            f"{home_of(out)} was not made: {error.message.replace(str(work), str(place))}",
            hint=f"{f'{error.hint}; ' if error.hint else ''}the {what} that failed its proof is kept as {place}; do not use it, and remove it",
            place=place,
            source=error.place if isinstance(error, NotProvedError) else None,
        ) from error
    except Exception as error:  # nobody foresaw it: hours of work are not thrown away for that
        error.add_note(f"what was made is whole, was not proved and is kept as {set_aside(work, out)}")
        raise


class NotProvedError(ExportError):
    """An export that is complete, but answers otherwise than what it was made from. It lies in ``place``; ``source``: where the model lies
    that it was made from, when that one is what is wrong: no other export of it is any better."""

    def __init__(self, message: str, hint: str, place: Path, source: Path | None = None) -> None:
        super().__init__(message, hint)
        self.place, self.source = place, source


def again(out: Path) -> Path:
    """Where ``out`` is made when something has that name already: in a hidden folder of its own, with all that is made beside it."""
    folder = out.parent / f".{out.name}{AGAIN}"
    WORKED_IN.add(folder.absolute())
    return folder / out.name


def home_of(out: Path) -> Path:
    """The inverse: where ``again(place)``, or a place itself, is to lie in the end."""
    own = out.parent.name == f".{out.name}{AGAIN}"
    return out.parent.parent / out.name if own else out


def beside(out: Path, ending: str) -> Path:
    """A sibling of the place that ``out`` is to lie at in the end."""
    home = home_of(out)
    return home.with_name(home.name + ending)


def exchange(place: Path, *, keep: bool) -> Path | None:
    """Put what was made in ``again(place)``, with all that lies beside it, in the place of the old one.

    ``keep``: the old one is not ours to remove; its new place is returned. Killed at any moment, the new one is whole, in one of the two.
    """
    new, kept = again(place), None
    for path in new.parent.iterdir():
        if path != new and not path.name.startswith("."):
            there = place.with_name(path.name)
            if keep and there.exists():
                aside(there)
            remove(there)
            path.rename(there)
    if keep and place.exists():
        kept = aside(place)
    old = place.with_name(f".{place.name}.old")
    if place.is_dir():
        remove(old)
        place.rename(old)
    new.replace(place)
    sync_folder(place.parent)
    remove(old)
    remove(new.parent)
    return kept


def aside(path: Path) -> Path:
    """Rename ``path`` to the first of .old, .old1 … that is free; returned."""
    kept = next(to for n in range(10_000) if not (to := path.with_name(f"{path.name}.old{n or ''}")).exists())
    return path.rename(kept)


def _sync(path: Path) -> None:
    """Flush a file, or all files of a folder, to the disk: a name is given to what survives a power cut."""
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
    if path.is_dir():
        sync_folder(path)


def remove(path: Path) -> None:
    """A file or a folder, there or not."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
