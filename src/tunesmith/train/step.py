"""One optimizer step: micro-batches forward and backward, the gradient clipped, the weights moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from tunesmith.stages.base import Item, Loss, lengths_of, micro_batches
from tunesmith.train import backward
from tunesmith.train.active import only_active
from tunesmith.train.guards import non_finite
from tunesmith.train.memory import within_memory
from tunesmith.train.scaler import forward_overflow
from tunesmith.train.setup import Setup


@dataclass(frozen=True)
class Gradients:
    """What the backward pass of one step gave; the gradients themselves lie with the masters.

    ``norm``: before clipping; not finite (then ``finite`` is False and the step is to be left out) only in fp16. ``metrics``: means over the step. ``padding``: share of the computed tokens that are none.
    ``worst``: the rows of the micro-batch with the highest mean loss.
    """

    loss: float
    norm: float
    metrics: dict[str, float] = field(default_factory=dict)
    padding: float = 0.0
    worst: Sequence[Item] = ()
    moved: bool = False
    """The weights have been moved within the backward pass; ``apply`` has nothing left to do."""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.norm)


def gradients(setup: Setup, rows: Sequence[Item], rate: float, step: int) -> Gradients:
    """Gradients of the mean loss of ``rows``, added up in the masters and clipped.

    Figures are read from the device once, at the end. Raises TrainingError when loss or norm are not finite.
    """
    config, masters = setup.config, setup.masters
    if config.in_backward:
        return _within_backward(setup, rows, rate, step)
    weight = sum(row.weight for row in rows)
    groups = micro_batches(rows, setup.micro_tokens, packed=config.packing)
    with only_active(masters, setup.optimizer):
        losses = within_memory(setup.memory, lambda: _backward(setup, rows, groups, weight), lambda: drop(setup))
    norm = torch.nn.utils.clip_grad_norm_(masters.parameters(), config.clip or math.inf)
    totals, norm_value, metrics = _read(losses, norm)
    for members, value in zip(groups, totals):
        if not math.isfinite(value):
            where = [rows[i] for i in members]
            raise (
                forward_overflow(value, step, where)
                if masters.scaler
                else non_finite(value, step, rate, where, dtype=setup.dtype)
            )
    if masters.scaler:
        masters.scaler.update(math.isfinite(norm_value), step)
    elif not math.isfinite(norm_value):
        raise non_finite(norm_value, step, rate, rows, what="gradient norm", dtype=setup.dtype)
    worst = max(range(len(groups)), key=lambda i: totals[i] / losses[i].weight if losses[i].weight else -math.inf)
    return Gradients(
        loss=sum(totals) / weight, norm=norm_value, metrics=metrics, padding=_padding(rows, groups, config.packing),
        worst=[rows[i] for i in groups[worst]],
    )  # fmt: skip


def _backward(setup: Setup, rows: Sequence[Item], groups: Sequence[Sequence[int]], weight: float) -> list[Loss]:
    """The loss of each micro-batch, off the graph; the gradients of their sum / ``weight`` lie with the masters. No weight changes."""
    losses: list[Loss] = []
    for members in groups:
        batch = setup.stage.collate([rows[i] for i in members], packed=setup.config.packing)
        loss = setup.stage.loss(setup.model, batch)
        setup.masters.scaled(loss.total / weight).backward()
        setup.masters.collect()
        losses.append(Loss(loss.total.detach(), loss.weight, loss.metrics))
    return losses


def _within_backward(setup: Setup, rows: Sequence[Item], rate: float, step: int) -> Gradients:
    """As ``gradients``, but the weights are moved at once; all rows are one micro-batch."""
    loss, norm = backward.optimizer_step(setup, rows, rate, step)
    totals, norm_value, metrics = _read([loss], norm)
    return Gradients(
        totals[0] / loss.weight,
        norm_value,
        metrics,
        _padding(rows, [range(len(rows))], setup.config.packing),
        rows,
        moved=True,
    )


def apply(setup: Setup, rate: float) -> None:
    """Let the optimizer move the weights by the gradients that are there."""
    for group in setup.optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
    setup.optimizer.step()
    drop(setup)
    setup.masters.publish()


def drop(setup: Setup) -> None:
    """Forget the gradients: the step leaves the weights as they are."""
    setup.masters.forget_gradients()
    setup.optimizer.zero_grad(set_to_none=True)


def _read(losses: Sequence[Loss], norm: torch.Tensor) -> tuple[list[float], float, dict[str, float]]:
    """Total of each loss, the norm, and the mean of each metric: one transfer, so that a GPU is waited for once a step."""
    on_device = [loss.total for loss in losses] + [norm]
    places: list[tuple[str, int]] = []
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for loss in losses:
        for name, (value, count) in loss.metrics.items():
            counts[name] = counts.get(name, 0.0) + count
            if torch.is_tensor(value):
                places.append((name, len(on_device)))
                on_device.append(value)
            else:
                sums[name] = sums.get(name, 0.0) + value
    read: list[float] = torch.stack([value.detach().float().to(norm.device) for value in on_device]).tolist()
    for name, place in places:
        sums[name] = sums.get(name, 0.0) + read[place]
    return read[: len(losses)], read[len(losses)], {name: sums[name] / counts[name] for name in sums if counts[name]}


def _padding(rows: Sequence[Item], groups: Sequence[Sequence[int]], packed: bool) -> float:
    if packed:
        return 0.0
    lengths = lengths_of(rows)
    computed = sum(len(members) * max(lengths[i] for i in members) for members in groups)
    return 1.0 - sum(lengths) / computed
