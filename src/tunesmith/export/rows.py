"""Rows of a weight that were learned alone (new tokens): put into the base's tensor, or after its last row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tunesmith.config.errors import ExportError
from tunesmith.export.numbers import FLOATS
from tunesmith.export.tensor_files import BUFFER, ITEM_BYTES, PlannedTensor, StoredTensor


@dataclass(frozen=True)
class Rows:
    """``which``: numbers of the rows; ``values`` [n, d]: what they became."""

    which: tuple[int, ...]
    values: StoredTensor


def with_rows(old: StoredTensor, rows: Rows, name: str, dtype: str | None = None) -> PlannedTensor:
    """``old`` [v, d] with ``rows`` in place of its own, and after its last row when they lie there, as ``dtype`` (its own). Raises ExportError.

    Read and written in blocks of rows.
    """
    beyond = sorted(row for row in rows.which if row >= old.shape[0])
    whole = list(range(old.shape[0], old.shape[0] + len(beyond)))
    if len(old.shape) != 2 or rows.values.shape[1:] != old.shape[1:] or beyond != whole:
        raise ExportError(
            f"{name} is {list(old.shape)} in the base, the adapter holds its rows {_short(rows.which)} of {list(rows.values.shape)}",
            hint="adapter and base do not belong together",
        )
    shape = (old.shape[0] + len(beyond), old.shape[1])
    written = dtype or old.dtype
    return PlannedTensor(name, written, shape, lambda: _chunks(old, rows, beyond, written))


def _chunks(old: StoredTensor, rows: Rows, beyond: list[int], dtype: str) -> Iterator[bytes]:
    import torch

    from tunesmith.export.changes import bytes_of, converted, rounded

    stored, written = (getattr(torch, FLOATS[kind]) for kind in (old.dtype, dtype))
    width, read = old.shape[1] * ITEM_BYTES[dtype], old.shape[1] * ITEM_BYTES[old.dtype]
    new = b"".join(converted(rows.values, dtype))
    value = {row: new[i * width : (i + 1) * width] for i, row in enumerate(rows.which)}
    block = max(1, BUFFER // max(width, read))
    for start in range(0, old.shape[0], block):
        end = min(old.shape[0], start + block)
        part = bytearray().join(old.read(start * read, end * read))
        if dtype != old.dtype:
            part = bytearray(bytes_of(rounded(torch.frombuffer(part, dtype=stored), written, old.name)))
        for row in rows.which:
            if start <= row < end:
                part[(row - start) * width : (row - start + 1) * width] = value[row]
        yield bytes(part)
    yield b"".join(value[row] for row in beyond)


def _short(which: tuple[int, ...]) -> str:
    return ", ".join(map(str, which[:3])) + (f" … {which[-1]}" if len(which) > 3 else "")
