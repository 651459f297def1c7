"""One optimizer step: micro-batches forward and backward, the gradient clipped, the weights moved."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tunesmith.stages.base import Item, micro_batches
from tunesmith.train import backward
from tunesmith.train.active import only_active
from tunesmith.train.guards import non_finite
from tunesmith.train.setup import Setup


def optimizer_step(setup: Setup, rows: Sequence[Item], rate: float, step: int) -> tuple[float, float]:
    """One optimizer step over ``rows``; returns the mean loss and the norm of the gradient before clipping."""
    if setup.config.in_backward:
        return backward.optimizer_step(setup, rows, rate, step)
    with only_active(setup.masters, setup.optimizer):
        return _optimizer_step(setup, rows, rate, step)


def _optimizer_step(setup: Setup, rows: Sequence[Item], rate: float, step: int) -> tuple[float, float]:
    config, optimizer = setup.config, setup.optimizer
    weight = sum(row.weight for row in rows)
    total = 0.0
    for members in micro_batches(rows, setup.micro_tokens, packed=config.packing):
        batch = setup.stage.collate([rows[i] for i in members], packed=config.packing)
        loss = setup.stage.loss(setup.model, batch)
        value = float(loss.total.detach())
        if not math.isfinite(value):
            raise non_finite(value, step, rate, [rows[i] for i in members])
        (loss.total / weight).backward()
        setup.masters.collect()
        total += value
    parameters = setup.masters.parameters()
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.clip or math.inf))
    if not math.isfinite(norm):
        raise non_finite(norm, step, rate, rows, what="gradient norm")
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    setup.masters.publish()
    return total / weight, norm
