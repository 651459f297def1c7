"""Training within the memory there is: what takes how much, how many layers are computed twice, and what to do when it is
not enough. Numbers come from measurements (``models.activations``, ``train.footprint``), decisions are made here.
"""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

from tunesmith.models.activations import Activations, measure
from tunesmith.models.checkpointing import checkpoint_layers
from tunesmith.models.devices import Memory, forget_peak, memory
from tunesmith.models.offload import Offload
from tunesmith.stages.base import Item, Stage, lengths_of, micro_batches
from tunesmith.train.footprint import Footprint
from tunesmith.train.order import Order
from tunesmith.train.out_of_memory import GIB, explain, gib, is_out_of_memory

RESERVE = 0.08
"""Share of the free memory that is left alone: fragments, work space of kernels, and what the estimate misses."""
T = TypeVar("T")


@dataclass
class MemoryPlan:
    """What takes how much on ``device``, and how many of ``layers`` are computed twice.

    ``may_raise``: more may be, when memory runs out all the same; ``pin`` writes the number down for a resumed run.
    """

    device: torch.device
    before: Memory
    footprint: Footprint
    activations: Activations
    layers: Sequence[torch.nn.Module]
    checkpointed: int
    micro_tokens: int
    longest: int
    offload: Offload | None = None
    may_raise: bool = True
    say: Callable[[str], None] = field(default=lambda _: None)
    pin: Callable[[int], None] = field(default=lambda _: None)

    @property
    def expected(self) -> int:
        """The peak that is expected, in bytes."""
        return self.before.used + self.footprint.to_come + self.activations.needed(self.checkpointed)

    def line(self) -> str:
        """What the training takes, in one line."""
        count, learning = len(self.layers), self.footprint.learning
        how = f"{self.checkpointed} of {count} layers are computed twice" if self.checkpointed else "no checkpointing"
        return (
            f"memory: weights {gib(self.footprint.weights)} GiB, masters, gradients and optimizer {gib(learning)}, activations "
            f"about {gib(self.activations.needed(self.checkpointed))} of {gib(self.before.free - self.footprint.to_come)} free: {how}"
        )

    def peak_line(self) -> str:
        """The peak that was, beside the one that was expected."""
        return f"peak memory {gib(memory(self.device).peak)} GiB, expected {gib(self.expected)}"

    def checkpoint_more(self) -> bool:
        """Compute an eighth of the layers more twice and write it down; False when that cannot be."""
        count = len(self.layers)
        if not self.may_raise or self.checkpointed >= count:
            return False
        self.checkpointed = min(count, self.checkpointed + math.ceil(count / 8))
        checkpoint_layers(self.layers, self.checkpointed, self.offload)
        self.pin(self.checkpointed)
        self.say(
            f"memory ran out: from now on {self.checkpointed} of {count} layers are computed twice; the step is repeated"
        )
        return True


def plan(
    wanted: bool | int | str,
    model: torch.nn.Module,
    layers: Sequence[torch.nn.Module],
    stage: Stage,
    probes: Sequence[Sequence[Item]],
    held: Footprint,
    *,
    micro_tokens: int,
    packed: bool,
    offload: Offload | None = None,
) -> MemoryPlan:
    """Measure a forward pass of each of ``probes`` (the heaviest micro-batches), and checkpoint as many layers as ``wanted``:
    all (True), none (False), a number, or with ``auto`` the fewest with which it fits into the free memory."""
    device = next(model.parameters()).device
    checkpoint_layers(layers, 0)
    model.train()
    before = memory(device)
    found: Activations | None = None
    for rows in probes:
        one = _measured(model, layers, stage, rows, packed=packed, offloaded=offload is not None)
        found = one if found is None else found.joined(one)
    assert found is not None
    if wanted == "auto":
        count = found.fewest(int((before.free - held.to_come) * (1 - RESERVE)))
    else:
        count = (len(layers) if wanted else 0) if isinstance(wanted, bool) else min(int(wanted), len(layers))
    checkpoint_layers(layers, count, offload)
    forget_peak(device)
    longest = max(item.length for rows in probes for item in rows)
    return MemoryPlan(
        device, before, held, found, layers, count, micro_tokens, longest, offload, may_raise=wanted is not False
    )


def _measured(
    model: torch.nn.Module,
    layers: Sequence[torch.nn.Module],
    stage: Stage,
    rows: Sequence[Item],
    *,
    packed: bool,
    offloaded: bool,
) -> Activations:
    """What a forward pass of ``rows`` keeps; where not even that pass fits, in proportion to what half of them keep."""
    batch = stage.collate(rows, packed=packed)
    try:
        return measure(model, layers, partial(stage.loss, model, batch), offloaded=offloaded)
    except (RuntimeError, MemoryError) as error:
        if len(rows) == 1 or not is_out_of_memory(error):
            raise
    half = rows[::2]
    found = _measured(model, layers, stage, half, packed=packed, offloaded=offloaded)
    return found.scaled(sum(row.length for row in rows) / sum(row.length for row in half))


def heaviest(items: Sequence[Item], order: Order, micro_tokens: int, *, packed: bool) -> list[list[Item]]:
    """The micro-batch of the longest rows, and of those of the first steps the one with the most learned tokens (whose
    logits take memory). ``order``: the run's."""
    lengths = lengths_of(items)
    longest = sorted(range(len(items)), key=lambda i: -lengths[i])[: max(len(order.rows(1)), 1)]
    rows = [items[i] for i in longest]
    first = micro_batches(rows, micro_tokens, packed=packed)
    chosen = [[rows[i] for i in max(first, key=lambda group: sum(rows[i].length for i in group))]]
    seen: list[list[Item]] = []
    for step in range(1, min(8, order.steps_in(1)) + 1):
        rows = [items[i] for i in order.rows(step)]
        seen += [[rows[i] for i in group] for group in micro_batches(rows, micro_tokens, packed=packed)]
    densest = max(seen, key=lambda group: sum(row.weight for row in group))
    if sum(row.weight for row in densest) > sum(row.weight for row in chosen[0]):
        chosen.append(densest)
    return chosen


def within_memory(found: MemoryPlan | None, work: Callable[[], T], forget: Callable[[], None]) -> T:
    """``work`` (forward and backward passes that change no weight). When memory runs out, more layers are computed twice
    and it is done again as if for the first time; ``forget`` drops what it left. Raises TrainingError when nothing helps.
    """
    while True:
        states = _random_states()
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if found is None or not is_out_of_memory(error):
                raise
            problem = explain(found, error)
        forget()  # outside of the handler: the error's frames held the activations
        gc.collect()
        if found.device.type == "cuda":
            torch.cuda.empty_cache()
        _restore(states)
        if not found.checkpoint_more():
            raise problem


def default_micro_tokens(device: torch.device) -> int:
    """Tokens of one forward pass: 512 on a CPU; on a GPU by its memory, so that most of it is at work."""
    if device.type == "cpu":
        return 512
    total = memory(device).total / GIB
    return next((tokens for below, tokens in ((9, 2048), (20, 4096), (60, 8192)) if total < below), 16384)


def _random_states() -> tuple[object, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return random.getstate(), torch.get_rng_state(), cuda


def _restore(states: tuple[object, ...]) -> None:
    python, cpu, cuda = states
    random.setstate(python)  # type: ignore[arg-type]
    torch.set_rng_state(cpu)  # type: ignore[arg-type]
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)  # type: ignore[arg-type]
