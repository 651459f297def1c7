"""Is a checkpoint's folder what was written? Sizes and SHA-256 of its files, as its ``trainer.json`` lists them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tunesmith.config.errors import TrainingError
from tunesmith.config.progress import Progress
from tunesmith.runs.folder import RunFolder

RECORD = "trainer.json"


def listed(folder: Path) -> dict[str, dict[str, Any]]:
    """``{file: {bytes, sha256}}`` of all files but the record itself. Files are read side by side: hashing lets Python go on."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        hashes = list(threads.map(_sha256, files))
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256}
        for path, sha256 in zip(files, hashes)
    }


def problem(folder: Path) -> str:
    """What is wrong with a checkpoint in words; '' when it is whole. One of an older version, without a list, is looked at
    as far as its files tell themselves how long they are."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{RECORD} is missing"
    except (OSError, ValueError) as error:
        return f"{RECORD} cannot be read ({str(error)[:100]})"
    if not isinstance(record, dict) or "position" not in record:
        return f"{RECORD} does not say where training stood"
    expected = record.get("files")
    if expected is None:
        return next((words for path in sorted(folder.glob("*.safetensors")) if (words := _cut_off(path))), "")
    for name, file in expected.items():
        place = folder / name
        if not place.is_file():
            return f"{name} is missing"
        if place.stat().st_size != file["bytes"]:
            return f"{name} has {place.stat().st_size} bytes, {file['bytes']} were written"
    found = listed(folder)
    return next((f"the content of {n} changed" for n, f in expected.items() if found[n]["sha256"] != f["sha256"]), "")


def newest_whole(run: RunFolder, progress: Progress) -> Path | None:
    """The newest checkpoint that is whole; None for a run without any. Damaged ones are said and set aside (renamed).

    Raises TrainingError when there are some and none is whole: starting over is for a person to decide.
    """
    steps = run.checkpoint_steps()
    found: dict[int, str] = {}
    for step in reversed(steps):
        folder = run.checkpoints / f"step-{step}"
        words = problem(folder)
        if not words:
            for bad, why in found.items():
                aside = _set_aside(run.checkpoints / f"step-{bad}")
                progress.say(f"warning: the checkpoint of step {bad} is damaged ({why}); it is now called {aside.name}")
            if found:
                progress.say(f"warning: going on from step {step} instead; the steps after it are done again")
            return folder
        found[step] = words
    if not steps:
        return None
    listed_words = "; ".join(f"step-{step}: {words}" for step, words in found.items())
    raise TrainingError(
        f"no checkpoint of run {run.id} is whole ({listed_words})",
        hint=f"bring them back from a copy, or begin again with: tunesmith runs restart {run.id}",
    )


def _set_aside(folder: Path) -> Path:
    names: Sequence[str] = ["", *(f"-{i}" for i in range(2, 100))]
    place = next(p for n in names if not (p := folder.with_name(f"damaged-{folder.name}{n}")).exists())
    return folder.rename(place)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cut_off(path: Path) -> str:
    """A safetensors file says in its header how long it is."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < path.stat().st_size else None
        assert header is not None
        end = max((t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"), default=0)
    except (OSError, ValueError, AssertionError, KeyError, TypeError):
        return f"{path.name} is no safetensors file"
    size = path.stat().st_size
    return "" if size == 8 + length + end else f"{path.name} has {size} bytes, {8 + length + end} were written"
