"""The held-out rows during training, and the prompts that are answered beside them. Training goes on as if neither had been."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tunesmith.config.errors import TrainingError
from tunesmith.stages.base import Item, Stage, micro_batches
from tunesmith.train import random_state
from tunesmith.train.optimizers.base import evaluation_weights
from tunesmith.train.position import Position
from tunesmith.train.recording import record, record_samples
from tunesmith.train.setup import Setup


@dataclass(frozen=True)
class Measured:
    """Sums over rows: of the loss, of what it is divided by, and of each metric with its count."""

    total: float = 0.0
    weight: float = 0.0
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __add__(self, other: Measured) -> Measured:
        names = [*self.metrics, *(n for n in other.metrics if n not in self.metrics)]
        pairs = {n: (self.metrics.get(n, (0.0, 0.0)), other.metrics.get(n, (0.0, 0.0))) for n in names}
        summed = {n: (a[0] + b[0], a[1] + b[1]) for n, (a, b) in pairs.items()}
        return Measured(self.total + other.total, self.weight + other.weight, summed)

    @property
    def loss(self) -> float:
        return self.total / self.weight

    @property
    def means(self) -> dict[str, float]:
        """Each metric's mean."""
        return {name: value / count for name, (value, count) in self.metrics.items() if count}


def evaluate_and_record(setup: Setup, position: Position) -> Position:
    """Loss, perplexity (its exponential) and the stage's metrics over the held-out rows, written to the metrics; with several
    sets also of each. Then the prompts."""
    with evaluation_weights(setup.optimizer, setup.masters):
        return _evaluate_and_record(setup, position)


def _evaluate_and_record(setup: Setup, position: Position) -> Position:
    if setup.eval:
        rows = setup.eval_sets or {"": range(len(setup.eval))}
        found = {name: _measured(setup, [setup.eval[i] for i in numbers]) for name, numbers in rows.items() if numbers}
        whole = sum(found.values(), Measured())
        if not math.isfinite(whole.loss):
            raise TrainingError(
                f"the evaluation loss became {whole.loss} at step {position.step}",
                hint="the weights are broken, or numbers are too large for this precision: look at the losses before it, and go on from "
                "an earlier checkpoint with a smaller learning rate (tunesmith runs continue RUN train.lr=…), or take precision=bf16 or fp32",
            )
        line: dict[str, Any] = {
            "kind": "eval", "step": position.step, "eval_loss": whole.loss, "eval_perplexity": _perplexity(whole.loss),
        }  # fmt: skip
        line |= {f"eval_{name}": value for name, value in whole.means.items()}
        if setup.eval_sets:
            line["sets"] = {
                name: {"loss": one.loss, "perplexity": _perplexity(one.loss), **one.means}
                for name, one in found.items()
            }
        record(setup.run, {**line, "time": time.time()})
        position = position.evaluated(whole.loss, whole.means, setup.config.min_delta)
    if setup.generate is not None and setup.prompts:
        with random_state.untouched():
            texts = setup.generate([prompt.ids for prompt in setup.prompts])
        record_samples(setup.run, position.step, list(zip((p.text for p in setup.prompts), texts)))
    return position


def evaluate(model: Any, stage: Stage, items: Sequence[Item], micro_tokens: int, *, packed: bool) -> float:
    """Mean loss of ``items`` (per learned token for SFT), without gradients; leaves training mode as it was."""
    return measure(model, stage, items, micro_tokens, packed=packed).loss


def measure(model: Any, stage: Stage, items: Sequence[Item], micro_tokens: int, *, packed: bool) -> Measured:
    """Loss and metrics of ``items``, without gradients; leaves training mode and random generators as they were."""
    was_training = model.training
    model.eval()
    whole = Measured()
    with torch.no_grad(), random_state.untouched():
        for members in micro_batches(items, micro_tokens, packed=packed):
            loss = stage.loss(model, stage.collate([items[i] for i in members], packed=packed))
            sums = {name: (float(value), float(count)) for name, (value, count) in loss.metrics.items()}
            whole += Measured(float(loss.total), loss.weight, sums)
    model.train(was_training)
    return whole


def words(setup: Setup, position: Position) -> str:
    """The latest evaluation in a line, and what it means for the best and for early stopping."""
    loss, accuracy = position.last.get("eval_loss"), position.last.get("eval_accuracy")
    if loss is None:
        return ""
    said = f"eval loss {loss:.4f}  perplexity {_perplexity(loss):.2f}"
    if accuracy is not None:
        said += f"  accuracy {accuracy:.1%}"
    if position.step and position.best_step == position.step:
        said += "  (the best so far)"
    elif position.stale and setup.config.early_stopping:
        said += f"  (no better for {position.stale} of {setup.config.early_stopping} evaluations)"
    return said


def _measured(setup: Setup, rows: Sequence[Item]) -> Measured:
    return measure(setup.model, setup.stage, rows, setup.micro_tokens, packed=setup.config.packing)


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))
