"""Stores kept between runs, found by the hash of everything that decides their content.

``<home>/cache/rows/<hash>/`` is one store. It is written beside and renamed, under a lock of its own: runs of the same config
at the same time make it once. What was killed half-way or damaged since is made again. The least recently used are removed
when all together are larger than ``$TUNESMITH_CACHE_GB`` (20 unless set).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tunesmith.config.errors import DataError
from tunesmith.config.files import sync_folder
from tunesmith.config.home import home
from tunesmith.config.progress import SILENT, Progress
from tunesmith.render.store import MANIFEST, DamagedStoreError, Layout, Store, StoreWriter

DEFAULT_GB = 20.0
FRESH_S = 3600.0
"""Stores used within this many seconds are never removed: a run that starts may be about to open them."""


@dataclass(frozen=True)
class Entry:
    """A store of the cache: its size in bytes and when it was last used (seconds since 1970)."""

    path: Path
    bytes: int
    used: float


def cache_folder() -> Path:
    """Where the stores are."""
    return home() / "cache" / "rows"


def cached(
    key: Mapping[str, Any], layout: Layout, make: Callable[[StoreWriter], None], progress: Progress = SILENT
) -> tuple[Store, bool]:
    """The store of ``key`` and whether it was there already; ``make`` writes it otherwise.

    ``key`` holds JSON values. Whatever ``make`` raises goes through and leaves nothing behind. Raises DataError when the
    cache cannot be written.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:40]
    folder = cache_folder()
    place = folder / name
    store = _open(place, layout, progress)
    if store is not None:
        return store, True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{name}.lock", progress):
            store = _open(place, layout, progress)  # another run may have made it meanwhile
            if store is not None:
                return store, True
            shutil.rmtree(place, ignore_errors=True)
            for left in folder.glob(f".{name}.*"):  # by a process that was killed: we hold the lock
                shutil.rmtree(left, ignore_errors=True)
            _write(folder, name, layout, make)
            store = Store(place, layout)
    except OSError as error:
        raise DataError(
            f"the encoded rows cannot be kept in {folder}: {error}",
            hint="free some space there, or name another folder with TUNESMITH_HOME",
        ) from error
    prune(keep=place)
    return store, False


def entries() -> list[Entry]:
    """All stores, least recently used first."""
    found = []
    for manifest in cache_folder().glob(f"*/{MANIFEST}"):
        with contextlib.suppress(OSError):  # removed at this moment by another process
            size = sum(f.stat().st_size for f in manifest.parent.iterdir())
            found.append(Entry(manifest.parent, size, manifest.stat().st_mtime))
    return sorted(found, key=lambda e: (e.used, e.path.name))


def prune(*, keep: Path | None = None, limit: float | None = None) -> list[Entry]:
    """Remove the least recently used stores until the rest fits ``limit`` bytes; what was removed."""
    limit = limit if limit is not None else _limit()
    kept = entries()
    size = sum(e.bytes for e in kept)
    removed = []
    for entry in kept:
        if size <= limit:
            break
        if entry.path != keep and time.time() - entry.used > FRESH_S:
            shutil.rmtree(entry.path, ignore_errors=True)  # mapped files stay readable where the system allows it
            size -= entry.bytes
            removed.append(entry)
    return removed


def _limit() -> float:
    text = os.environ.get("TUNESMITH_CACHE_GB", "")
    try:
        return float(text or DEFAULT_GB) * 1e9
    except ValueError:
        raise DataError(f"TUNESMITH_CACHE_GB is {text!r}", hint="expected a number of gigabytes, like 20") from None


def _open(place: Path, layout: Layout, progress: Progress) -> Store | None:
    if not place.is_dir():
        return None
    try:
        store = Store(place, layout)
    except DamagedStoreError as error:
        progress.say(f"the cache {place} is damaged ({error}); the rows are encoded again")
        return None
    with contextlib.suppress(OSError):  # a cache that can only be read is one still
        os.utime(place / MANIFEST)
    return store


def _write(folder: Path, name: str, layout: Layout, make: Callable[[StoreWriter], None]) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder))
    writer = StoreWriter(temporary, layout)
    try:
        make(writer)
        writer.finish()
        temporary.rename(folder / name)
        sync_folder(folder)
    except BaseException:
        writer.close()
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Any:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.say("another run is encoding the same rows; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
