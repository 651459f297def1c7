"""The header of a GGUF file: its metadata and what tensors it holds, checked against the file's real length.

The ``gguf`` package reads every token and merge into arrays of its own, which takes seconds (4 s for 49k tokens, measured); here lists
are skipped. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """``shape`` as in safetensors (rows first); ``type`` as ggml names it (``F16``, ``Q8_0``); ``offset`` in bytes from the file's start."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """``metadata``: key -> number, flag or text; for a list only its length."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


class _Cursor:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def scalar(self, code: str) -> Any:
        value = struct.unpack_from("<" + code, self.data, self.at)[0]
        self.at += struct.calcsize("<" + code)
        return value

    def text(self) -> str:
        length = self.scalar("Q")
        if length > len(self.data) - self.at:
            raise ValueError("a text reaches beyond the end of the file")
        value = self.data[self.at : self.at + length].decode("utf-8")
        self.at += length
        return value

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.scalar(SCALARS[kind])
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner in SCALARS:
            self.at += count * struct.calcsize("<" + SCALARS[inner])
        elif inner == STRING:
            unpack, data, at = struct.Struct("<Q").unpack_from, self.data, self.at
            for _ in range(count):
                at += 8 + unpack(data, at)[0]
            self.at = at
        else:
            raise ValueError(f"a list of type {inner}")
        return count


def read_gguf(path: Path) -> GgufHeader:
    """Read the header of ``path``. Raises ExportError if it is no GGUF (version 2 or 3), or shorter than its tensors."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(data)
            magic, version = data[:4], cursor.scalar("Q") >> 32
            if magic != b"GGUF" or version not in (2, 3):
                raise ValueError(f"it starts with {magic!r}, version {version}")
            tensor_count, pair_count = cursor.scalar("Q"), cursor.scalar("Q")
            metadata: dict[str, Any] = {}
            for _ in range(pair_count):
                key = cursor.text()
                metadata[key] = cursor.value(cursor.scalar("I"))
            tensors, end = {}, 0
            for _ in range(tensor_count):
                name = cursor.text()
                shape = tuple(reversed([cursor.scalar("Q") for _ in range(cursor.scalar("I"))]))
                kind, offset = GGMLQuantizationType(cursor.scalar("I")), cursor.scalar("Q")
                block, block_bytes = GGML_QUANT_SIZES[kind]
                end = max(end, offset + math.prod(shape) // block * block_bytes)
                tensors[name] = GgufTensor(name, kind.name, shape, offset)
            alignment = metadata.get("general.alignment", 32)
            start = -(-cursor.at // alignment) * alignment
            if start + end > len(data):
                raise ValueError(f"it has {len(data)} bytes, its tensors need {start + end}")
            tensors = {name: replace(tensor, offset=start + tensor.offset) for name, tensor in tensors.items()}
    except (OSError, ValueError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise ExportError(
            f"{path} cannot be read as GGUF: {error}", hint="the file is damaged or incomplete"
        ) from error
    return GgufHeader(metadata, tensors)
