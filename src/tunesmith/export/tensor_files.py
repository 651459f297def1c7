"""Safetensors on disk: what a folder holds, checked against the files' real sizes, and how to write shards in a small buffer.

Knows bytes and names; knows neither models nor torch. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError
from tunesmith.config.progress import Progress

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
BUFFER = 8 * 2**20
"""Bytes read or merged at once."""
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
DAMAGED = "the file is damaged or was not downloaded completely; fetch it again"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file: ``dtype`` as safetensors spells it (``BF16``), ``offset`` and ``nbytes`` within ``file``."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def chunks(self, size: int = BUFFER) -> Iterator[bytes]:
        """The raw bytes, at most ``size`` at a time."""
        return self.read(0, self.nbytes, size)

    def read(self, start: int, end: int, size: int = BUFFER) -> Iterator[bytes]:
        """The raw bytes ``start`` … ``end`` of the tensor."""
        with self.file.open("rb") as file:
            file.seek(self.offset + start)
            while start < end:
                part = file.read(min(size, end - start))
                if not part:
                    raise ExportError(f"{self.file} ends in the middle of {self.name}", hint=DAMAGED)
                start += len(part)
                yield part


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor to write: its bytes come from ``chunks`` when their turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def read_json(path: Path) -> Any:
    """A JSON file of a model folder. Raises ExportError naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path} is missing", hint="is this a complete model folder?") from None
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read as JSON: {error}") from error


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one file. Raises ExportError when the header or the file's length is not what the format demands."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, 100_000_000):
                raise ExportError(f"{file} is not a whole safetensors file ({size} bytes)", hint=DAMAGED)
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        found = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            shape = tuple(int(n) for n in entry["shape"])
            tensor = StoredTensor(name, file, entry["dtype"], shape, 8 + length + begin, end - begin)
            if tensor.dtype not in ITEM_BYTES:
                raise ExportError(f"{file}: {name} has the unknown type {tensor.dtype}")
            if tensor.nbytes != math.prod(shape) * ITEM_BYTES[tensor.dtype] or begin < 0:
                raise ExportError(f"{file}: {name} has {tensor.nbytes} bytes for shape {list(shape)}", hint=DAMAGED)
            found[name] = tensor
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(f"{file} cannot be read as safetensors: {error}", hint=DAMAGED) from error
    end = max((t.offset + t.nbytes for t in found.values()), default=8 + length)
    if end != size:
        raise ExportError(f"{file} has {size} bytes, its header describes {end}", hint=DAMAGED)
    return found


def read_model(folder: Path, stem: str = "model") -> dict[str, StoredTensor]:
    """All tensors of a model folder, from its index or its single file. Raises ExportError (missing shard, pickle only, …).

    ``stem``: what the names of the files begin with.
    """
    place = folder / f"{stem}.safetensors.index.json"
    if place.exists():
        weight_map = read_json(place).get("weight_map", {})
        found: dict[str, StoredTensor] = {}
        for name in sorted(set(weight_map.values())):
            if Path(name).name != name:
                raise ExportError(f"{place} points outside its folder: {name}")
            if not (folder / name).is_file():
                raise ExportError(f"{folder / name} is missing, though the index names it", hint=DAMAGED)
            found |= read_header(folder / name)
        absent = sorted(set(weight_map) - set(found))
        if absent:
            raise ExportError(
                f"{folder}: {len(absent)} tensors of the index are in no file, first {absent[0]}", hint=DAMAGED
            )
        return found
    single = folder / f"{stem}.safetensors"
    files = [single] if single.exists() else sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
        if pickles:
            raise ExportError(
                f"{folder} holds its weights only as pickle ({pickles[0]}), which may run code when read",
                hint="get the safetensors version of this model (on the Hub: the branch or file model.safetensors)",
            )
        raise ExportError(f"{folder} holds no .safetensors file", hint="is this a complete model folder?")
    return {name: tensor for file in files for name, tensor in read_header(file).items()}


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


def write_shards(folder: Path, tensors: Sequence[PlannedTensor], max_bytes: int, progress: Progress) -> dict[str, str]:
    """Write ``tensors`` (and the index, if they fill several files); file name -> SHA-256. Peak memory is one chunk."""
    sums: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    for name, group in plan_shards(tensors, max_bytes):
        sums[name] = _write_file(folder / name, group, progress)
        weight_map |= {tensor.name: name for tensor in group}
    if len(sums) > 1:
        index = {
            "metadata": {"total_size": sum(t.nbytes for t in tensors)},
            "weight_map": dict(sorted(weight_map.items())),
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return sums


def _write_file(path: Path, tensors: Sequence[PlannedTensor], progress: Progress) -> str:
    ordered = sorted(tensors, key=lambda t: -ITEM_BYTES[t.dtype])  # wide types first keeps every tensor aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
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
    with path.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            file.write(part)
            digest.update(part)
        for tensor in ordered:
            written = 0
            for chunk in tensor.chunks():
                file.write(chunk)
                digest.update(chunk)
                written += len(chunk)
                progress.advance(len(chunk))
            assert written == tensor.nbytes, f"{tensor.name}: {written} bytes written, {tensor.nbytes} planned"
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
