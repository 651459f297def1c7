"""Safetensors on disk: what a folder holds, checked against the files' real sizes, and its bytes a buffer at a time.

Knows bytes and names; knows neither models nor torch. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SERVED = "tunesmith.served"
"""In a file's metadata: JSON, type -> names of the tensors that are to be served as it and are stored in a finer one."""
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
"""The types of floats that weights are read in -> torch's names."""
BUFFER = 8 * 2**20
"""Bytes read or merged at once."""
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


def damaged(file: Path) -> str:
    """What to do about a weight file that is not whole: one of a run was written here and is nowhere to be fetched."""
    if any(part.startswith("step-") and before == "checkpoints" for before, part in zip(file.parts, file.parts[1:])):
        return "this checkpoint of a run is damaged; take an earlier one (RUN@step-N, see `tunesmith runs`), or train on from there"
    return "the file is damaged or not whole; fetch the model again, or make it again where it was made"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file: ``dtype`` as safetensors spells it (``BF16``), ``offset`` and ``nbytes`` within ``file``.

    ``serves``: the type that the file names for it in what is made of the model, where that is not its own (``numbers``).
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    serves: str | None = None

    @property
    def served(self) -> str:
        """The type it has in what is made of the model, if that stores it as a float."""
        return self.serves or self.dtype

    def chunks(self, size: int = BUFFER) -> Iterator[bytes]:
        """The raw bytes, at most ``size`` at a time."""
        return self.read(0, self.nbytes, size)

    def read(self, start: int, end: int, size: int = BUFFER) -> Iterator[bytes]:
        """The raw bytes ``start`` … ``end`` of the tensor."""
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset + start)
            while start < end:
                part = file.read(min(size, end - start))
                if not part:
                    raise ExportError(f"{self.file} ends in the middle of {self.name}", hint=damaged(self.file))
                start += len(part)
                yield part

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill ``buffer`` (bytes) with the tensor's from ``start`` on. Raises ExportError when the file ends before."""
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset + start)
            done = 0
            while done < len(buffer):
                count = file.readinto(buffer[done:])
                if not count:
                    raise ExportError(f"{self.file} ends in the middle of {self.name}", hint=damaged(self.file))
                done += count


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor to write: its bytes come from ``chunks`` when their turn comes, in pieces that are not changed afterwards.

    ``serves``: the type it is to be served as, where that is not ``dtype``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes | memoryview]]
    serves: str | None = None

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


def same_bytes(first: StoredTensor, second: StoredTensor) -> bool:
    """Whether two stored tensors are the same: type, shape and bytes."""
    alike = (first.dtype, first.shape) == (second.dtype, second.shape)
    return alike and all(a == b for a, b in zip(first.chunks(), second.chunks(), strict=True))


def _serves(metadata: dict[str, str]) -> dict[str, str]:
    """Name of a tensor -> the type that the file names for it. What is not of that form was not written here and says nothing."""
    try:
        told = json.loads(metadata.get(SERVED, "{}"))
    except (ValueError, TypeError, RecursionError):
        return {}
    pairs = told.items() if isinstance(told, dict) else ()
    return {
        name: kind
        for kind, names in pairs
        if kind in FLOATS and isinstance(names, list)
        for name in names
        if isinstance(name, str)
    }


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one file. Raises ExportError when the header or the file's length is not what the format demands."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, 100_000_000):
                raise ExportError(f"{file} is not a whole safetensors file ({size} bytes)", hint=damaged(file))
            header = json.loads(stream.read(length))
        metadata = header.pop("__metadata__", None) or {}
        serves = _serves(metadata)
        found = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            shape = tuple(int(n) for n in entry["shape"])
            kind = entry["dtype"]
            told = serves.get(name) if kind in FLOATS else None
            tensor = StoredTensor(name, file, kind, shape, 8 + length + begin, end - begin, told)
            if tensor.dtype not in ITEM_BYTES:
                raise ExportError(f"{file}: {name} has the unknown type {tensor.dtype}")
            if tensor.nbytes != math.prod(shape) * ITEM_BYTES[tensor.dtype] or begin < 0:
                raise ExportError(
                    f"{file}: {name} has {tensor.nbytes} bytes for shape {list(shape)}", hint=damaged(file)
                )
            found[name] = tensor
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(f"{file} cannot be read as safetensors: {error}", hint=damaged(file)) from error
    end = max((t.offset + t.nbytes for t in found.values()), default=8 + length)
    if end != size:
        raise ExportError(f"{file} has {size} bytes, its header describes {end}", hint=damaged(file))
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
                raise ExportError(f"{folder / name} is missing, though the index names it", hint=damaged(folder / name))
            found |= read_header(folder / name)
        absent = sorted(set(weight_map) - set(found))
        if absent:
            raise ExportError(
                f"{folder}: {len(absent)} tensors of the index are in no file, first {absent[0]}", hint=damaged(place)
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
