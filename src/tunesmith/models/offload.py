"""Activations kept in the memory of the CPU between forward and backward pass (Rajbhandari et al., 2021, arXiv:2104.07857,
section 5.1.3; Unsloth keeps the inputs of checkpointed layers so).

Copies run on streams of their own, out while later layers compute and in one tensor ahead of the backward pass; they are
exact, so that results are the same bit for bit. Knows nothing of layers: it sees tensors that autograd saves.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

SMALLEST = 1 << 20
"""Bytes below which a tensor stays where it is: the copy would cost more than it frees."""


class Moved:
    """A saved tensor on its way out, in the memory of the CPU, or on its way back."""

    def __init__(self, tensor: torch.Tensor, out: Any) -> None:
        self.storage = StorageWeakRef(
            tensor.untyped_storage()
        )  # while this lives no other storage gets the same number
        self.device = tensor.device
        self.copied: Any = None
        self.back: torch.Tensor | None = None
        self.before: weakref.ref[Moved] | None = None
        self.copy = torch.empty_like(tensor, device="cpu", pin_memory=out is not None)
        if out is None:
            self.copy.copy_(tensor)
            return
        out.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(out):
            self.copy.copy_(tensor, non_blocking=True)
            self.copied = out.record_event()
        tensor.record_stream(out)

    def start_back(self, into: Any) -> None:
        """Begin the copy to the device, if it has not begun."""
        if self.back is None:
            with torch.cuda.stream(into):
                if self.copied is not None:
                    into.wait_event(self.copied)
                self.back = self.copy.to(self.device, non_blocking=True)


class Offload:
    """Saved tensors of at least ``smallest`` bytes are kept on the CPU; those of ``kept`` (the model's weights) are not copied."""

    def __init__(self, device: torch.device, kept: Iterable[torch.Tensor], smallest: int = SMALLEST) -> None:
        self.smallest = smallest
        self._kept = {tensor.untyped_storage().data_ptr() for tensor in kept}
        streams = device.type == "cuda"
        self._out: Any = torch.cuda.Stream(device) if streams else None
        self._into: Any = torch.cuda.Stream(device) if streams else None
        self._known: weakref.WeakValueDictionary[tuple[Any, ...], Moved] = weakref.WeakValueDictionary()
        self._newest: weakref.ref[Moved] | None = None
        self.moved = 0
        """Bytes copied out so far."""

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        """A context in which saved tensors are moved."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor | Moved:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):  # quantized weights and the like
            return tensor
        size = tensor.numel() * tensor.element_size()
        storage = tensor.untyped_storage()
        overlapping = size > storage.nbytes()
        if size < self.smallest or overlapping or storage.data_ptr() in self._kept:
            return tensor
        # One tensor is saved by several operations (the input of q, k and v): it is copied once.
        key = (StorageWeakRef(storage).cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor._version)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Moved(tensor.detach(), self._out)
            found.before, self._newest = self._newest, weakref.ref(found)
            self.moved += size
        return found

    def _unpack(self, packed: torch.Tensor | Moved) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        if self._into is None:
            return packed.copy.to(packed.device)
        packed.start_back(self._into)
        found = packed.back
        assert found is not None
        now = torch.cuda.current_stream(packed.device)
        now.wait_stream(self._into)
        found.record_stream(now)
        earlier = packed.before() if packed.before is not None else None
        if earlier is not None:
            earlier.start_back(self._into)
        return found
