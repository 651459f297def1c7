"""What a forward pass keeps for its backward pass, counted tensor by tensor, and how many layers must be computed twice
to make it fit. Nothing is kept while counting, so that it takes no more memory than a forward pass without gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef


@dataclass(frozen=True)
class Activations:
    """Bytes kept for the backward pass of one micro-batch.

    ``layers``: by each decoder layer; ``inputs``: by each when it is checkpointed; ``outside``: by all else (embeddings,
    output layer, loss); ``largest``: the largest single tensor; ``widest``: the largest within a layer.
    """

    layers: tuple[int, ...]
    inputs: tuple[int, ...]
    outside: int
    largest: int
    widest: int

    def needed(self, checkpointed: int) -> int:
        """Most bytes at one time when the first ``checkpointed`` layers are computed twice.

        Either at the turn from forward to backward, when everything is kept and the largest tensor (as a rule the
        log-probabilities) has a gradient in and one out; or when the last checkpointed layer is computed again, after all
        behind it was freed: then about three tensors of its widest kind are at work besides what it keeps (measured).
        """
        kept = sum(self.inputs[:checkpointed])
        turn = self.outside + kept + sum(self.layers[checkpointed:]) + 2 * self.largest
        again = kept + max(self.layers[:checkpointed]) + 3 * self.widest if checkpointed else 0
        return max(turn, again)

    def fewest(self, free: int) -> int:
        """The smallest number of checkpointed layers with which the pass takes at most ``free`` bytes; if there is none,
        the number with which it takes least."""
        numbers = range(len(self.layers) + 1)
        return next((n for n in numbers if self.needed(n) <= free), min(numbers, key=self.needed))

    def scaled(self, factor: float) -> Activations:
        """For a micro-batch of ``factor`` times as many tokens."""
        layers, inputs = (tuple(int(size * factor) for size in sizes) for sizes in (self.layers, self.inputs))
        outside, largest, widest = (int(size * factor) for size in (self.outside, self.largest, self.widest))
        return Activations(layers, inputs, outside, largest, widest)

    def joined(self, other: Activations) -> Activations:
        """The larger of two measurements, part by part."""
        pairs = zip((self.layers, self.inputs), (other.layers, other.inputs))
        layers, inputs = (tuple(max(a, b) for a, b in zip(*pair)) for pair in pairs)
        outside, largest = max(self.outside, other.outside), max(self.largest, other.largest)
        return Activations(layers, inputs, outside, largest, max(self.widest, other.widest))


def measure(
    model: torch.nn.Module, layers: Sequence[torch.nn.Module], forward: Callable[[], Any], *, offloaded: bool = False
) -> Activations:
    """Count what ``forward`` (a pass through ``model``, none of whose ``layers`` is checkpointed) saves; its result cannot
    be differentiated. ``offloaded``: the inputs of checkpointed layers are kept elsewhere. Random states stay as they are.
    """
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    seen: dict[int, StorageWeakRef] = {}  # a storage's number is not given again while a reference to it is held
    kept, inputs, inside = [0] * len(layers), [0] * len(layers), [-1]
    outside, largest, widest = [0], [0], [0]

    def count(tensor: torch.Tensor) -> Any:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            return
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if storage.data_ptr() in weights or reference.cdata in seen:
            return
        seen[reference.cdata] = reference
        size = storage.nbytes()
        largest[0] = max(largest[0], size)
        if inside[0] >= 0:
            kept[inside[0]] += size
            widest[0] = max(widest[0], size)
        else:
            outside[0] += size

    def enter(number: int, _: Any, arguments: tuple[Any, ...]) -> None:
        inside[0] = number
        tensors = [] if offloaded else [a for a in arguments if torch.is_tensor(a)]
        inputs[number] = sum(t.numel() * t.element_size() for t in tensors)

    def leave(*_: Any) -> None:
        inside[0] = -1

    handles = [layer.register_forward_pre_hook(partial(enter, n)) for n, layer in enumerate(layers)]
    handles += [layer.register_forward_hook(leave) for layer in layers]
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            with torch.autograd.graph.saved_tensors_hooks(count, _nothing):
                forward()
    finally:
        for handle in handles:
            handle.remove()
    return Activations(tuple(kept), tuple(inputs), outside[0], largest[0], widest[0])


def _nothing(_: Any) -> Any:
    raise AssertionError("a pass that was only measured cannot be differentiated")
