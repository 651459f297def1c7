"""Damage done to a GGUF on purpose, in place: other metadata of the same length, other weights."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np


def set_metadata(path: Path, key: str, old: str | int | bool, new: str | int | bool) -> None:
    """Overwrite a value of the file's header; texts must be as long as before."""
    data = bytearray(path.read_bytes())
    name = key.encode()
    at = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name) + 4
    before, after = _packed(old), _packed(new)
    assert len(before) == len(after), "another length"
    assert data[at : at + len(before)] == before, data[at : at + 16]
    data[at : at + len(after)] = after
    path.write_bytes(data)


def _packed(value: str | int | bool) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<?", value)
    if isinstance(value, int):
        return struct.pack("<I", value)
    return struct.pack("<Q", len(value.encode())) + value.encode()


def disturb(path: Path, tensor: str, amount: float) -> None:
    """Add noise of ``amount`` times its own spread to a tensor of 16-bit floats."""
    import gguf

    found = next(t for t in gguf.GGUFReader(path, "r+").tensors if t.name == tensor)
    values = found.data.astype(np.float32)
    noise = np.random.default_rng(0).normal(size=values.shape) * values.std() * amount
    found.data[:] = (values + noise).astype(found.data.dtype)


def in_another_order(old: Path, new: Path) -> None:
    """The same file with its settings in reverse order."""
    data = old.read_bytes()
    version, tensors, count = struct.unpack_from("<IQQ", data, 4)
    at, settings = 24, []
    for _ in range(count):
        start = at
        at += 8 + struct.unpack_from("<Q", data, at)[0]
        (kind,) = struct.unpack_from("<I", data, at)
        at = _after_value(data, at + 4, kind)
        settings.append(data[start:at])
    assert sum(map(len, settings)) == at - 24
    new.write_bytes(data[:4] + struct.pack("<IQQ", version, tensors, count) + b"".join(settings[::-1]) + data[at:])


SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def _after_value(data: bytes, at: int, kind: int) -> int:
    if kind == 8:
        return at + 8 + int(struct.unpack_from("<Q", data, at)[0])
    if kind != 9:
        return at + SIZES[kind]
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    for _ in range(count):
        at = _after_value(data, at, inner)
    return at
