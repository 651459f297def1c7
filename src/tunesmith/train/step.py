"""One optimizer step: micro-batches forward and backward, the gradient clipped, the weights moved."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tunesmith.stages.base import Item, micro_batches
from tunesmith.train.guards import non_finite
from tunesmith.train.masters import Masters
from tunesmith.train.memory import within_memory
from tunesmith.train.scaler import forward_overflow
from tunesmith.train.setup import Setup


def optimizer_step(setup: Setup, rows: Sequence[Item], rate: float, step: int) -> tuple[float, float]:
    """One optimizer step over ``rows``; returns the mean loss and the norm of the gradient before clipping.

    In fp16 the norm may be infinite: then the step was skipped.
    """
    config, optimizer, masters = setup.config, setup.optimizer, setup.masters
    loss = within_memory(
        setup.memory, lambda: _gradients(setup, rows, rate, step), lambda: _forget_gradients(masters, optimizer)
    )
    norm = float(torch.nn.utils.clip_grad_norm_(masters.parameters(), config.clip or math.inf))
    finite = math.isfinite(norm)
    if masters.scaler:
        masters.scaler.update(finite, step)
    elif not finite:
        raise non_finite(norm, step, rate, rows, what="gradient norm")
    if finite:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    masters.publish()
    return loss, norm


def _gradients(setup: Setup, rows: Sequence[Item], rate: float, step: int) -> float:
    """Add the gradients of the mean loss of ``rows`` to the masters'; returns that loss. No weight changes."""
    config, masters = setup.config, setup.masters
    weight = sum(row.weight for row in rows)
    total = 0.0
    for members in micro_batches(rows, setup.micro_tokens, packed=config.packing):
        batch = setup.stage.collate([rows[i] for i in members], packed=config.packing)
        loss = setup.stage.loss(setup.model, batch)
        value = float(loss.total.detach())
        if not math.isfinite(value):
            where = [rows[i] for i in members]
            raise forward_overflow(value, step, where) if masters.scaler else non_finite(value, step, rate, where)
        masters.scaled(loss.total / weight).backward()
        masters.collect()
        total += value
    return total / weight


def _forget_gradients(masters: Masters, optimizer: torch.optim.Optimizer) -> None:
    """As if no backward pass of this step had begun."""
    masters.forget_gradients()
    optimizer.zero_grad(set_to_none=True)
