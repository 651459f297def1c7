"""What a merge is made from, as one text: two that are equal write the same bytes, so that one may go on where the other was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.export.tensor_files import PlannedTensor

SMALL = 2**30
"""Bytes up to which a learned file counts by its content, not by its time of change."""


def fingerprint(
    tensors: Sequence[PlannedTensor], base: Iterable[Path], learned: Sequence[Path], settings: dict[str, Any]
) -> str:
    """SHA-256 over the plan, the files of the base (place, size, time of change), the learned files (content, in their order) and ``settings``.

    The versions of the programs that compute are part of it.
    """
    import torch

    from tunesmith import __version__

    record = {
        "programs": [__version__, torch.__version__],
        "tensors": [(t.name, t.dtype, t.shape) for t in tensors],
        "base": sorted(map(_stamp, base)),
        "learned": [_content(p) if p.stat().st_size <= SMALL else _stamp(p) for p in learned],
        "settings": settings,
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _stamp(path: Path) -> tuple[str, int, int | str]:
    found = path.stat()
    return str(path.resolve()), found.st_size, found.st_mtime_ns


def _content(path: Path) -> tuple[str, int, int | str]:
    with path.open("rb") as file:
        return path.name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
