"""What goes wrong with numbers in training, seen in the numbers alone and said in words.

A spike is a loss or gradient norm far outside what the recent steps were like. "Like" is measured with the median and the median
absolute deviation of a window, which a few wild values do not move (Hampel, 1974); and because losses of small batches have long
tails, a spike must besides stand three times as far above the median as anything in the window.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.config.errors import TrainingError
from tunesmith.stages.base import Item

WINDOW, ENOUGH = 64, 20
"""Steps that the recent ones are, and how many must be known before a verdict."""
DEVIATIONS = 10.0
"""Standard deviations (as estimated from the median absolute deviation) that a spike is above the median, at least."""
BEYOND = 3.0
"""Times as far above the median as the highest of the window."""
LEAST_LOSS = 0.3
"""Less above the median is no spike in a loss: nats per token, and the same share of the median."""
LEAST_NORM = math.log(10.0)
"""Less is no spike in the norm of the gradient, which is judged by its logarithm: ten times the median."""
MOST_IN_A_ROW = 5
"""After so many spikes one after the other it is no spike any more but another level."""


@dataclass(frozen=True)
class Spike:
    """``what`` is ``loss`` or ``gradient norm``; ``usual``: the median of the recent steps."""

    what: str
    value: float
    usual: float


@dataclass(frozen=True)
class Recent:
    """Figures of the latest ordinary steps: losses, natural logarithms of gradient norms, and how many steps in a row since were
    spikes or had no gradient at all."""

    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    spikes: int = 0
    zeros: int = 0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Recent:
        """From JSON values."""
        return cls(
            tuple(values.get("losses", ())), tuple(values.get("norms", ())),
            int(values.get("spikes", 0)), int(values.get("zeros", 0)),
        )  # fmt: skip

    def spike(self, loss: float, norm: float) -> Spike | None:
        """Is this step far outside of the recent ones?"""
        usual = _leap(self.losses, loss, LEAST_LOSS)
        if usual is not None:
            return Spike("loss", loss, usual)
        usual = _leap(self.norms, math.log(norm), LEAST_NORM) if norm > 0 else None
        return None if usual is None else Spike("gradient norm", norm, math.exp(usual))

    def after(self, loss: float, norm: float, spike: Spike | None) -> Recent:
        """With one more step. Spikes are not taken in, unless they have become the rule: then counting begins anew."""
        if spike is not None:
            if self.spikes + 1 < MOST_IN_A_ROW:
                return Recent(self.losses, self.norms, self.spikes + 1, 0)
            return Recent()
        if norm == 0:
            return Recent(self.losses, self.norms, 0, self.zeros + 1)
        return Recent((*self.losses, loss)[-WINDOW:], (*self.norms, math.log(norm))[-WINDOW:])


def _leap(window: Sequence[float], value: float, least: float) -> float | None:
    """The median of ``window`` when ``value`` is a spike above it."""
    if len(window) < ENOUGH:
        return None
    usual = statistics.median(window)
    deviation = 1.4826 * statistics.median(abs(x - usual) for x in window)  # of a normal distribution
    above = max(DEVIATIONS * deviation, least * max(1.0, abs(usual)), BEYOND * (max(window) - usual))
    return usual if value - usual > above else None


def spike_words(
    spike: Spike, step: int, rate: float, rows: Sequence[Item], worst: Sequence[Item], *, warming_up: bool, done: str
) -> tuple[str, str]:
    """(what happened, what to do). ``worst``: the rows of the micro-batch with the highest loss among the step's ``rows``."""
    said = f"step {step}: the {spike.what} leapt to {spike.value:.4g}, from about {spike.usual:.4g} before ({done})"
    where = f"learning rate {rate:.1e}; the highest loss is that of {named(worst)}"
    if len(worst) < len(rows) and spike.what == "loss":
        hint = "look at these rows with `tunesmith data show`: unlike the others, broken, or in another language"
    elif warming_up:
        hint = (
            "the learning rate is still rising: a longer train.warmup or a smaller train.lr keeps steps like this small"
        )
    else:
        hint = "if it happens again: a smaller train.lr, a smaller train.clip, or train.on_spike=skip"
    return f"{said}; {where}", hint


def named(rows: Sequence[Item]) -> str:
    """Some origins and how many more."""
    return ", ".join(row.origin for row in rows[:3]) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")


def non_finite(
    value: float, step: int, rate: float, rows: Sequence[Item], what: str = "loss", dtype: torch.dtype | None = None
) -> TrainingError:
    """The error for a loss or gradient norm that is not finite, with its likely cause."""
    empty = [row.origin for row in rows if row.weight == 0]
    if empty:
        hint = f"rows without a learned token: {', '.join(empty[:3])}; `tunesmith data check` names them all"
    elif dtype == torch.float16:
        hint = "fp16 has no numbers above 65504: use precision=bf16 where the device has it, else fp32"
    elif step <= 2:
        hint = "at the first steps this means broken weights or numbers too small for them: try precision=fp32, then another model file"
    else:
        hint = f"the learning rate {rate:.1e} is probably too high: go on from the last checkpoint with a smaller one: tunesmith runs continue RUN train.lr=…"
    return TrainingError(f"the {what} became {value} at step {step} (rows {named(rows)}); training stopped", hint=hint)


def check_learning(parameters: int, scales: Sequence[float]) -> None:
    """Raises TrainingError when no step can change anything. ``scales``: factors of the learning rate, one per group."""
    if not parameters:
        raise TrainingError(
            "no weight is learned: the method leaves all of them frozen", hint="choose other targets of the method"
        )
    if not any(scales):
        raise TrainingError("nothing can be learned: the learning rate of every weight is multiplied by 0")


def zero_gradient(zeros: int, step: int) -> str | None:
    """What to say after so many steps in a row whose gradient was exactly zero; raises TrainingError when a run began with them."""
    if zeros == MOST_IN_A_ROW and step == zeros:
        raise TrainingError(
            f"the gradient was exactly zero in the first {step} steps: nothing is learned",
            hint="the learned weights do not reach the loss: other targets of the method, or rows whose learned part is not empty",
        )
    if zeros in (1, MOST_IN_A_ROW):
        return f"warning: step {step}: the gradient is exactly zero, so nothing was learned from it"
    return None
