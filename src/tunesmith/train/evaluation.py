"""The held-out rows during training."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from tunesmith.stages.base import Item, Stage, micro_batches
from tunesmith.train.checkpoint import Position
from tunesmith.train.optimizers.base import evaluation_weights
from tunesmith.train.recording import record
from tunesmith.train.setup import Setup


def evaluate_and_record(setup: Setup, position: Position) -> Position:
    """Mean loss over the held-out rows, written to the metrics; perplexity is its exponential."""
    with evaluation_weights(setup.optimizer, setup.masters):
        loss = evaluate(setup.model, setup.stage, setup.eval, setup.micro_tokens, packed=setup.config.packing)
    record(
        setup.run,
        {
            "kind": "eval", "step": position.step, "eval_loss": loss,
            "eval_perplexity": math.exp(min(loss, 700.0)), "time": time.time(),
        }
    )  # fmt: skip
    best = loss if position.best_eval is None else min(loss, position.best_eval)
    return replace(position, best_eval=best, last={**position.last, "eval_loss": loss})


def evaluate(model: Any, stage: Stage, items: Sequence[Item], micro_tokens: int, *, packed: bool) -> float:
    """Mean loss of ``items`` (per learned token for SFT), without gradients; leaves training mode as it was."""
    was_training = model.training
    model.eval()
    total = weight = 0.0
    with torch.no_grad():
        for members in micro_batches(items, micro_tokens, packed=packed):
            loss = stage.loss(model, stage.collate([items[i] for i in members], packed=packed))
            total += float(loss.total)
            weight += loss.weight
    model.train(was_training)
    return total / weight
