"""The learning rate as a function of the step, so that resuming needs no state."""

from __future__ import annotations

import math


def warmup_steps(warmup: float, total: int) -> int:
    """``warmup`` below 1 is a share of ``total``, else a number of steps."""
    return math.ceil(warmup * total) if warmup < 1 else int(warmup)


def learning_rate(step: int, total: int, peak: float, schedule: str, warmup: float) -> float:
    """Learning rate of optimizer step ``step`` (1 … total).

    Linear warm-up to ``peak`` over w steps, reached at step w; then with x = (step - 1 - w) / (total - w):
    cosine 0.5 (1 + cos(pi x)), linear 1 - x, constant 1 (the shapes of transformers' schedulers).
    """
    before = warmup_steps(warmup, total)
    if step - 1 < before:
        return peak * step / (before + 1) if before else peak
    x = (step - 1 - before) / max(1, total - before)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * x))
    return peak * (1 - x) if schedule == "linear" else peak
