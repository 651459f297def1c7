"""Bytes that stay on the device for the whole training: weights, masters, gradients, the optimizer's states.

The states are counted before they exist, by one step on tensors of the same shapes without contents (torch's meta device).
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.train.masters import Masters
from tunesmith.train.optimizers.base import Groups
from tunesmith.train.rounding import StochasticallyRounded

UNKNOWN = 8
"""Bytes of state per number for an optimizer that cannot be stepped without contents: Adam's."""


@dataclass(frozen=True)
class Footprint:
    """Bytes. ``weights``: everything of the model; ``learned``: the part of it that is learned; ``unquantized``: the frozen
    part in numbers of 16 bits and more; ``gradients`` and ``optimizer`` do not exist before the first step."""

    weights: int
    learned: int
    unquantized: int
    masters: int
    gradients: int
    optimizer: int

    @property
    def to_come(self) -> int:
        """What the first step will add for good."""
        return self.gradients + self.optimizer

    @property
    def learning(self) -> int:
        """All that is there because weights are learned."""
        return self.masters + self.gradients + self.optimizer


def footprint(
    model: torch.nn.Module,
    masters: Masters,
    groups: Groups,
    build: Callable[[Groups], torch.optim.Optimizer],
    *,
    gradients_live_together: bool = True,
) -> Footprint:
    """``groups``: as ``build`` takes them. ``gradients_live_together``: False when each is applied and freed at once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*model.parameters(), *model.buffers())
    }
    own = [(p, m) for p, m in masters.pairs.values() if m is not p]
    per_gradient = [
        m.numel() * (m.element_size() + (p.element_size() if m is not p else 0)) for p, m in masters.pairs.values()
    ]
    together = sum if gradients_live_together else max
    return Footprint(
        weights=sum(storages.values()),
        learned=sum(_size(p) for p, _ in masters.pairs.values()),
        unquantized=sum(_size(p) for p in model.parameters() if not p.requires_grad and p.element_size() >= 2),
        masters=sum(_size(m) for _, m in own),
        gradients=together(per_gradient) if per_gradient else 0,
        optimizer=state_bytes(masters.named(), groups, build),
    )


def state_bytes(
    named: Mapping[str, torch.nn.Parameter], groups: Groups, build: Callable[[Groups], torch.optim.Optimizer]
) -> int:
    """Bytes of all states of the optimizer that ``build`` makes for ``groups``; paged ones do not count."""
    settings = {name: group for group in groups for name in group["names"]}
    # Layers are alike: one of each shape and name (without its numbers) stands for all.
    alike: Counter[tuple[torch.Size, str]] = Counter()
    example: dict[tuple[torch.Size, str], str] = {}
    largest = max(named, key=lambda name: named[name].numel(), default=None)
    for name, parameter in named.items():
        key = (parameter.shape, re.sub(r"\d+", "#", name))
        alike[key] += 1
        example.setdefault(key, name)
    total = passing = 0
    for key, count in alike.items():
        name = example[key]
        states, wide = _states_of_one(named[name], name, settings[name], build)
        total += count * states
        if largest is not None and named[largest].shape == key[0]:
            passing = wide
    return total + passing


def _states_of_one(
    parameter: torch.nn.Parameter,
    name: str,
    settings: Mapping[str, Any],
    build: Callable[[Groups], torch.optim.Optimizer],
) -> tuple[int, int]:
    """Bytes of the states of one parameter, and bytes of the fp32 copies that live while it is stepped."""
    empty = torch.nn.Parameter(torch.empty_like(parameter, device="meta"))
    states: dict[str, Any] = {}
    rounded = stepped = False
    with contextlib.suppress(Exception):  # not every kernel computes on meta; the states are there before it is asked
        optimizer = build([{**settings, "params": [empty], "names": [name]}])
        if getattr(optimizer, "is_paged", False):
            return 0, 0
        rounded = isinstance(optimizer, StochasticallyRounded)
        if rounded:  # random numbers cannot be drawn on meta: ask what it wraps
            empty = torch.nn.Parameter(torch.empty_like(parameter, device="meta", dtype=torch.float32))
            optimizer = optimizer.build([{**settings, "params": [empty], "names": [name]}])  # type: ignore[attr-defined]
        empty.grad = torch.empty_like(empty)
        with contextlib.suppress(Exception):
            optimizer.step()
            stepped = True
        states = optimizer.state[empty]
    tensors = [value for value in states.values() if torch.is_tensor(value) and value.ndim]
    wide = sum(_size(t) for t in tensors) if states or stepped else UNKNOWN * parameter.numel()
    if not rounded:
        return wide, 0
    return sum(_size(t) // (2 if t.shape == parameter.shape else 1) for t in tensors), wide + 8 * parameter.numel()


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
