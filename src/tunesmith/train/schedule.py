"""The learning rate as a function of the step, so that resuming needs no state."""

from __future__ import annotations

import math

from tunesmith.train.schedules.base import Schedule


def warmup_steps(warmup: float, total: int) -> int:
    """``warmup`` below 1 is a share of ``total``, else a number of steps."""
    return math.ceil(warmup * total) if warmup < 1 else int(warmup)


def learning_rate(step: int, total: int, peak: float, schedule: Schedule, warmup: float) -> float:
    """Learning rate of optimizer step ``step`` (1 … total).

    Linear warm-up to ``peak`` over w steps, reached at step w + 1; then ``peak * schedule.factor(step - 1 - w, total - w)``
    (the shapes of transformers' schedulers).
    """
    before = warmup_steps(warmup, total)
    if step - 1 < before:
        return peak * step / (before + 1) if before else peak
    return peak * schedule.factor(step - 1 - before, total - before)
