"""A stored weight with the changes of adapters, as a tensor to write: computed in float32 in blocks of rows, rounded once.

One block of rows is in memory at a time, whatever the size of the weight. Knows no kind of adapter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from tunesmith.config.errors import ExportError
from tunesmith.export.numbers import FLOATS
from tunesmith.export.tensor_files import BUFFER, ITEM_BYTES, PlannedTensor, StoredTensor

if TYPE_CHECKING:
    import torch

FEWEST = 16
"""Rows of a block. A product with fewer than 4 rows is summed in another order, so its last bits are not those of the whole."""
Blocks = Callable[[], "Iterator[tuple[int, torch.Tensor]]"]
"""Reads a weight from its start: the number of the first row, and some rows [n, columns] in float32 or wider."""
Step = Callable[["torch.Tensor", int], "torch.Tensor"]
"""Rows of the weight as they were, and the number of the first one -> the rows as they become."""


class Change(Protocol):
    """What an adapter does to one weight. A weight with more than two axes counts as rows of its last axis."""

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """The shape it was made for, when that is not ``shape``."""

    def open(self, before: Blocks, dtype: torch.dtype) -> Step:
        """Load it. ``before`` reads the weight that it changes, for changes that depend on more than their own rows;
        ``dtype`` is what the weight is stored as. The step may change the rows it is given."""


def merged(
    weight: StoredTensor, changes: Sequence[Change], name: str, dtype: str | None = None, *, exact: bool = False
) -> PlannedTensor:
    """``weight`` with ``changes`` made in order, as a tensor to write under ``name``. Raises ExportError when they do not fit.

    ``dtype``: the type to write (``BF16`` …), by default the weight's own. ``exact``: nothing is rounded before it is written.

    This is what peft's ``merge_and_unload`` computes, bit for bit on a CPU: it keeps adapters in float32 and rounds the sum once. (Its
    ``safe_merge`` rounds the delta to the weight's type first, so it may differ there in the last bit.) Of several changes
    peft rounds after each one.
    """
    if weight.dtype not in FLOATS:
        raise ExportError(
            f"{weight.file}: {weight.name} is stored as {weight.dtype}; a quantized base cannot take the adapter exactly",
            hint="give the base in its original precision (16 or 32 bit)",
        )
    for change in changes:
        if (made_for := change.misfit(weight.shape)) is not None:
            raise ExportError(
                f"{weight.name} is {list(weight.shape)} in the base, the adapter was trained for {made_for}",
                hint="adapter and base do not belong together; see base_model_name_or_path in the adapter's adapter_config.json",
            )
    written = dtype or weight.dtype
    return PlannedTensor(name, written, weight.shape, lambda: _bytes(weight, changes, written, exact))


def _bytes(weight: StoredTensor, changes: Sequence[Change], dtype: str, exact: bool) -> Iterator[memoryview]:
    import torch

    written = getattr(torch, FLOATS[dtype])
    for _, rows in _opened(weight, changes, exact)():
        yield bytes_of(rounded(rows, written, weight.name))


def rounded(values: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """``values`` in ``dtype``. Raises ExportError when a number of the weight ``name`` is too large for it."""
    import torch

    found = values.to(dtype)
    if dtype == torch.float16 and values.dtype != dtype and not bool(found.isfinite().all()):
        raise ExportError(
            f"{name} holds numbers beyond 65504, where float16 ends (or none at all)",
            hint="dtype=bfloat16 or dtype=float32 hold them (--to hf); for other exports free some disk, then float32 is taken",
        )
    return found


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor as it lies in memory, not copied where they follow each other."""
    import torch

    flat: memoryview = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return flat


def _opened(weight: StoredTensor, changes: Sequence[Change], exact: bool) -> Blocks:
    """Reads ``weight`` with the changes made."""
    import torch

    if not changes:
        return lambda: _rows(weight)
    before = _opened(weight, changes[:-1], exact)
    kind = getattr(torch, FLOATS[weight.dtype])
    step = changes[-1].open(before, torch.promote_types(kind, torch.float32) if exact else kind)
    return lambda: ((start, step(rows, start)) for start, rows in before())


def _rows(weight: StoredTensor) -> Iterator[tuple[int, torch.Tensor]]:
    import torch

    count, columns = math.prod(weight.shape[:-1]), weight.shape[-1]
    row_bytes = columns * ITEM_BYTES[weight.dtype]
    block = max(FEWEST, BUFFER // (columns * 4))
    dtype = getattr(torch, FLOATS[weight.dtype])
    start = end = 0
    while end < count:
        start, end = end, min(count, end + block)
        if count - end < FEWEST:
            end = count
        part = torch.empty(end - start, columns, dtype=dtype)
        weight.read_into(bytes_of(part), start * row_bytes)
        yield start, part.to(torch.promote_types(dtype, torch.float32))


@lru_cache(maxsize=4)  # the experts of a layer share one A and one B
def load(tensor: StoredTensor) -> torch.Tensor:
    """A whole stored tensor in float32."""
    return loaded(tensor).float()


def loaded(tensor: StoredTensor) -> torch.Tensor:
    """A whole stored tensor in its own type."""
    import torch

    whole = torch.empty(tensor.shape, dtype=getattr(torch, FLOATS[tensor.dtype]))
    tensor.read_into(bytes_of(whole), 0)
    return whole


def same_values(first: StoredTensor, second: StoredTensor) -> bool:
    """Whether two stored tensors hold the same numbers, in whatever types."""
    import torch

    if first.shape != second.shape or not {first.dtype, second.dtype} <= FLOATS.keys():
        return False
    return all(torch.equal(one, other) for (_, one), (_, other) in zip(_rows(first), _rows(second), strict=True))


def as_it_is(tensor: StoredTensor, name: str | None = None, dtype: str | None = None) -> PlannedTensor:
    """``tensor`` to write under ``name`` (its own), in the type ``dtype`` (its own)."""
    if dtype in (None, tensor.dtype):
        return PlannedTensor(name or tensor.name, tensor.dtype, tensor.shape, tensor.chunks)
    return PlannedTensor(name or tensor.name, str(dtype), tensor.shape, lambda: converted(tensor, str(dtype)))


def converted(tensor: StoredTensor, dtype: str) -> Iterator[memoryview]:
    """The bytes of ``tensor`` rounded to the stored type ``dtype`` (``BF16`` …), a chunk at a time."""
    import torch

    stored, wanted = getattr(torch, FLOATS[tensor.dtype]), getattr(torch, FLOATS[dtype])
    for chunk in tensor.chunks(BUFFER):
        part = torch.frombuffer(bytearray(chunk), dtype=stored)
        yield bytes_of(rounded(part, wanted, tensor.name))
