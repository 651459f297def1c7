"""Our own model folders under ``models_folder()``: made in ``NAME.partial`` under a lock, then renamed, so that a model
is whole or not there, whoever is killed when and however many processes want it at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..config.files import sync_folder, write_json
from ..config.progress import Progress

SOURCE_FILE = "tunesmith-source.json"


def make_once(
    folder: Path, make: Callable[[Path], dict[str, str]], is_whole: Callable[[Path], bool], progress: Progress
) -> Path:
    """``folder`` as it is, or filled by ``make(partial)``, whose answer is saved beside the model as its origin.

    ``make`` finds in ``partial`` what an earlier, interrupted call left, or what is left of a finished folder that is not
    whole any more, and may go on from there. It raises when it cannot make the folder whole.
    """
    if folder.is_dir() and is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(folder.name + ".partial")
    with _locked(folder, progress):
        if folder.is_dir():
            if is_whole(folder):
                return folder
            shutil.rmtree(partial, ignore_errors=True)
            folder.replace(partial)
        partial.mkdir(exist_ok=True)
        write_json(partial / SOURCE_FILE, make(partial))
        partial.replace(folder)
        sync_folder(folder.parent)
    return folder


@contextmanager
def _locked(folder: Path, progress: Progress) -> Iterator[None]:
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.say(f"another process is fetching {folder.name}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
