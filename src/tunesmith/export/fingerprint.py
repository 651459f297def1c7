"""What an export is made from, as short texts: where two are equal the same bytes are written, so that one may go on where the other
was stopped, or be taken in its place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tunesmith.config.progress import SILENT, Progress
from tunesmith.export.tensor_files import PlannedTensor

SMALL = 2**30
"""Bytes up to which a learned file counts by its content, not by its time of change."""
PARTS = (".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken")
"""Endings of the files in a model's or adapter's folder that decide what it is."""
OF_TRAINING = ("optimizer.safetensors", "trainer.json")
"""Files of a checkpoint that only training reads."""


def fingerprint(
    tensors: Sequence[PlannedTensor], base: Iterable[Path], learned: Sequence[Path], settings: dict[str, Any]
) -> str:
    """SHA-256 over the plan, the files of the base (place, size, time of change), the learned files (content, in their order) and ``settings``.

    The versions of the programs that compute are part of it.
    """
    record = {
        "programs": programs(),
        "tensors": [(t.name, t.dtype, t.shape) for t in tensors],
        "base": sorted(map(_stamp, base)),
        "learned": [_content(p) if p.stat().st_size <= SMALL else _stamp(p) for p in learned],
        "settings": settings,
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def programs(*further: str) -> dict[str, str]:
    """The versions of what computes: Tunesmith, torch, transformers and the packages ``further``."""
    from tunesmith import __version__

    found = {"tunesmith": __version__}
    for name in ("torch", "transformers", *further):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def of_folder(folder: Path, *, small: int = 2**26) -> str:
    """SHA-256 over the files that decide what a model or adapter is: by content up to ``small`` bytes, by size and time of change above.

    It does not hold where the folder lies: one that was moved is the same.
    """
    parts = sorted(p for p in folder.iterdir() if p.suffix in PARTS and p.name not in OF_TRAINING and p.is_file())
    found = [_content(p) if p.stat().st_size <= small else (p.name, *_stamp(p)[1:]) for p in parts]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def sha256_of(path: Path, progress: Progress = SILENT) -> str:
    """SHA-256 of a file."""
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**24):
            whole.update(chunk)
            progress.advance(len(chunk))
    return whole.hexdigest()


def _stamp(path: Path) -> tuple[str, int, int | str]:
    found = path.stat()
    return str(path.resolve()), found.st_size, found.st_mtime_ns


def _content(path: Path) -> tuple[str, int, int | str]:
    with path.open("rb") as file:
        return path.name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
