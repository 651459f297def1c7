"""config.json and safetensors headers: names, shapes, types and sizes of tensors without reading a weight.

A safetensors file is 8 bytes N (little endian), N bytes of JSON, then the tensors' bytes without gaps
(https://huggingface.co/docs/safetensors/index#format). Every claim of a header is checked against the file's size, so
that a file cut short by an interrupted download, or a hostile one, is found before anything is loaded.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.errors import UserError

MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own reader
MAX_CONFIG_BYTES = 10_000_000
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
AGAIN = "delete the file and download it again; it is incomplete or damaged"
PLAIN_NAME = re.compile(r"[^/\\:\x00-\x1f]+")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as its header describes it; ``size`` is in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    file: Path

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A safetensors header; ``size`` is that of the whole file in bytes."""

    path: Path
    size: int
    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """All weights of a folder, over one file or several shards."""

    files: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def elements(self) -> int:
        """Numbers in all tensors. For unquantized weights this is the parameter count."""
        return sum(tensor.elements for tensor in self.tensors.values())


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """The JSON object in ``path``. Raises UserError when it is longer than ``limit`` bytes or not such an object."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UserError(f"{path} is larger than {limit // 1_000_000} MB, which no such file is", AGAIN)
    return _json_object(data, path)


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model folder. Raises UserError when it is not there or not a JSON object."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no config.json", "a model folder has config.json beside its weights")
    return read_json(path, MAX_CONFIG_BYTES)


def read_header(path: Path) -> Header:
    """The header of one safetensors file, checked against the file's size.

    Raises UserError when the file is cut short, when tensors overlap or leave gaps, or when anything else in the header
    cannot be true.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if len(start) < 8:
            raise UserError(f"{path} is no safetensors file: it has {size} bytes", AGAIN)
        length = int.from_bytes(start, "little")
        if length > MAX_HEADER_BYTES:
            raise UserError(f"{path} is no safetensors file: its header would have {length} bytes", AGAIN)
        if 8 + length > size:
            raise UserError(f"{path} is cut short: its header alone has {length} bytes, the file {size}", AGAIN)
        data = file.read(length)
    content = _json_object(data, path)
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(f"{path}: __metadata__ is not a table of texts", AGAIN)
    return Header(path, size, _tensors(path, content, size - 8 - length), metadata)


def weights_of(folder: Path, stem: str = "model") -> Weights:
    """Every tensor of the safetensors weights in ``folder``: ``<stem>.safetensors`` or the shards of its index.

    Raises UserError when there are none, when a shard is missing or cut short (all such shards are named), or when the
    index and the shards do not agree.
    """
    index = folder / f"{stem}.safetensors.index.json"
    single = folder / f"{stem}.safetensors"
    if index.is_file() and not single.is_file():  # where both are, transformers reads the single file
        return _sharded(folder, index)
    if not single.is_file():
        raise UserError(
            f"{folder} holds no {stem}.safetensors", "safetensors weights are needed; download the model again"
        )
    header = read_header(single)
    return Weights((single,), {tensor.name: tensor for tensor in header.tensors})


def _sharded(folder: Path, index: Path) -> Weights:
    table = read_json(index, MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f"{index} holds no weight_map", AGAIN)
    shards = sorted(set(table.values()))
    for name in shards:
        if not PLAIN_NAME.fullmatch(name) or name in (".", "..") or not name.endswith(".safetensors"):
            raise UserError(f"{index} names {name!r}, which is no safetensors file of this folder", AGAIN)
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        some = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise UserError(
            f"{folder} is not complete: {len(missing)} of {len(shards)} shards are missing ({some})",
            "copy or download the missing files; finished ones stay as they are",
        )
    tensors: dict[str, TensorInfo] = {}
    for name in shards:
        for tensor in read_header(folder / name).tensors:
            if table.get(tensor.name) == name:
                tensors[tensor.name] = tensor
    lost = [name for name in table if name not in tensors]
    if lost:
        raise UserError(
            f"{folder}: the index promises {len(lost)} tensors that its shards do not hold (first: {lost[0]})",
            "the files come from different versions of the model; download it again into an empty folder",
        )
    return Weights(tuple(folder / name for name in shards), tensors)


def _json_object(data: bytes, path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a key occurs twice")
        return table

    try:
        content = json.loads(data, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} holds no valid JSON where it should ({error})", AGAIN) from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object where it should", AGAIN)
    return content


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _tensors(path: Path, content: dict[str, Any], room: int) -> tuple[TensorInfo, ...]:
    found: list[tuple[int, int, TensorInfo]] = []
    for name, entry in content.items():
        broken = UserError(f"{path}: the header's entry for {name!r} cannot be true", AGAIN)
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise broken
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in BITS:
            raise UserError(f"{path}: {name!r} has the unknown type {dtype!r}", "update Tunesmith, or check the file")
        if not isinstance(shape, list) or len(shape) > 64 or not all(map(_is_count, shape)):
            raise broken
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
            raise broken
        begin, end = offsets
        if (end - begin) * 8 != math.prod(shape) * BITS[dtype]:
            raise broken
        found.append((begin, end, TensorInfo(name, dtype, tuple(shape), end - begin, path)))
    found.sort(key=lambda item: (item[0], item[1]))
    position = 0
    for begin, end, tensor in found:
        if begin != position:
            raise UserError(f"{path}: tensors overlap or leave a gap at {tensor.name!r}", AGAIN)
        position = end
    if position != room:
        what = "is cut short" if position > room else "is longer than its header says"
        raise UserError(f"{path} {what}: {position} bytes of tensors are announced, {room} are there", AGAIN)
    return tuple(tensor for _, _, tensor in found)
