"""Tensors written as safetensors shards through a small buffer, hashed on the way; an interrupted writing goes on at its shard.

A journal beside the shards says for which inputs they were made and which of them are finished. Knows neither models nor torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config.files import write_json
from tunesmith.config.progress import Progress
from tunesmith.export.base import LOCK
from tunesmith.export.tensor_files import INDEX, ITEM_BYTES, SERVED, SINGLE, PlannedTensor

JOURNAL = "unfinished.json"
"""In a folder that is being written; gone when it is complete."""
AHEAD = 4
"""Pieces that may wait to be hashed and written: what is in memory beside the one that is computed."""


@dataclass(frozen=True)
class Shards:
    """What was written. ``sums``: file name -> SHA-256; ``kept``: the files that an earlier call had finished."""

    sums: dict[str, str]
    kept: tuple[str, ...]


def plan_shards(tensors: Sequence[PlannedTensor], max_bytes: int) -> list[tuple[str, list[PlannedTensor]]]:
    """File names and what goes in them, in order. A tensor larger than ``max_bytes`` has a file of its own."""
    groups: list[list[PlannedTensor]] = []
    used = 0
    for tensor in tensors:
        if not groups or (groups[-1] and used + tensor.nbytes > max_bytes):
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += tensor.nbytes
    if len(groups) == 1:
        return [(SINGLE, groups[0])]
    return [(f"model-{i:05d}-of-{len(groups):05d}.safetensors", group) for i, group in enumerate(groups, 1)]


def finished(folder: Path, inputs: str) -> dict[str, str]:
    """File name -> SHA-256 of the shards in ``folder`` that an earlier call finished for the same ``inputs``; {} for others.

    A file counts when it has the size and the time of change it had when it was finished.
    """
    try:
        journal = json.loads((folder / JOURNAL).read_text(encoding="utf-8"))
        done = journal["finished"] if journal["inputs"] == inputs else {}
        return {
            name: str(entry["sha256"]) for name, entry in done.items() if _stamp(folder / name) == tuple(entry["stamp"])
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write_shards(
    folder: Path, tensors: Sequence[PlannedTensor], max_bytes: int, progress: Progress, *, inputs: str = ""
) -> Shards:
    """Write ``tensors`` (and the index, if they fill several files) into ``folder``.

    Shards that ``finished`` names for ``inputs`` stay as they are; whatever else an earlier call left there is removed. A shard that
    was not finished is removed when writing it fails. Memory: a few chunks. Raises OSError (a full disk).
    """
    kept = finished(folder, inputs)
    for path in folder.iterdir():
        if path.is_file() and path.name not in kept and path.name != LOCK:
            path.unlink()
    entries: dict[str, Any] = {n: {"sha256": s, "stamp": _stamp(folder / n)} for n, s in kept.items()}
    write_json(folder / JOURNAL, {"inputs": inputs, "finished": entries})
    planned = plan_shards(tensors, max_bytes)
    with ThreadPoolExecutor(1) as hashing, ThreadPoolExecutor(1) as writing, ThreadPoolExecutor(1) as flushing:

        def settle(path: Path, digest: Future[str]) -> str:
            """On the disk for good, then in the journal: while the next shard is being written."""
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            entries[path.name] = {"sha256": digest.result(), "stamp": _stamp(path)}
            write_json(folder / JOURNAL, {"inputs": inputs, "finished": entries})
            return digest.result()

        flushed: dict[str, Future[str]] = {}
        for name, group in planned:
            if name in kept:
                progress.advance(sum(t.nbytes for t in group))
                continue
            digest = _write_file(folder / name, group, progress, hashing, writing)
            flushed[name] = flushing.submit(settle, folder / name, digest)
        sums = {name: kept[name] if name in kept else flushed[name].result() for name, _ in planned}
    if len(sums) > 1:
        index = {
            "metadata": {"total_size": sum(t.nbytes for t in tensors)},
            "weight_map": dict(sorted((t.name, name) for name, group in planned for t in group)),
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return Shards(sums, tuple(kept))


def _serves(tensors: Sequence[PlannedTensor]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for tensor in tensors:
        if tensor.serves not in (None, tensor.dtype):
            found.setdefault(str(tensor.serves), []).append(tensor.name)
    return found


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _write_file(
    path: Path,
    tensors: Sequence[PlannedTensor],
    progress: Progress,
    hashing: ThreadPoolExecutor,
    writing: ThreadPoolExecutor,
) -> Future[str]:
    """Write one file. ``hashing`` and ``writing`` are single threads, so that the next piece is read and computed meanwhile.

    Returns the SHA-256 to come. Raises OSError; then the file is gone.
    """
    ordered = sorted(tensors, key=lambda t: -ITEM_BYTES[t.dtype])  # wide types first keeps every tensor aligned
    metadata, serves = {"format": "pt"}, _serves(ordered)
    if serves:
        metadata[SERVED] = json.dumps(serves)
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for tensor in ordered:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    waiting: deque[tuple[Future[None], Future[None]]] = deque()
    try:
        with path.open("wb", buffering=0) as file:

            def write(chunk: bytes | memoryview) -> None:
                view = memoryview(chunk)
                done = 0
                while done < len(view):
                    done += file.write(view[done:])

            def put(chunk: bytes | memoryview) -> int:
                while len(waiting) >= AHEAD:
                    done()
                waiting.append((hashing.submit(digest.update, chunk), writing.submit(write, chunk)))
                return len(memoryview(chunk))

            def done() -> None:
                for future in waiting.popleft():
                    future.result()

            try:
                put(len(text).to_bytes(8, "little") + text)
                for tensor in ordered:
                    written = 0
                    for chunk in tensor.chunks():
                        count = put(chunk)
                        written += count
                        progress.advance(count)
                    assert written == tensor.nbytes, f"{tensor.name}: {written} bytes written, {tensor.nbytes} planned"
            finally:  # nothing is written any more when the file is closed
                wait([future for pair in waiting for future in pair])
            while waiting:
                done()
        return hashing.submit(digest.hexdigest)
    except BaseException:
        path.unlink(missing_ok=True)  # half a shard helps nobody, and the disk may be full
        raise
