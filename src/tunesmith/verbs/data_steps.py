"""How many optimizer steps a config makes of the rows of its sets, as numbers and as a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tunesmith.data.config import DataConfig
from tunesmith.data.mix import order
from tunesmith.data.split import held_out_count, held_out_numbers
from tunesmith.train.order import Order
from tunesmith.verbs.run_config import TrainRun

FEW_STEPS = 30
"""Optimizer steps; below, a change is seldom seen."""


No = Literal["", "no_rows", "other_kind", "tokens_unknown"]


@dataclass(frozen=True)
class Steps:
    """``rows`` per epoch (after ``held_out`` rows were taken away, weights and mixing), ``batch`` of rows per optimizer step.
    ``max_steps`` 0 = as many as the epochs make. ``steps`` is 0 with a reason in ``none``: no row is left, the ``stage``
    cannot learn from the rows, or steps are counted in tokens and those are not known. ``few``: too few to see a change.
    ``tokens``: the limits in tokens in words, '' without; ``about``: the steps are an estimate from the rows' lengths."""

    stage: str
    rows: int
    epochs: float
    batch: int
    max_steps: int
    held_out: int
    steps: int = 0
    few: bool = False
    none: No = ""
    tokens: str = ""
    about: bool = False

    def line(self) -> str:
        """The same in words."""
        if self.none == "no_rows":
            return "no row is left to train on"
        if self.none == "other_kind":
            return f"the stage {self.stage} learns from other rows than these: see below"
        if self.none == "tokens_unknown":
            return f"with {self.tokens} the number of steps needs the rows' lengths: name a model (--model)"
        how = f"{_many(self.rows, 'row')} × {self.epochs:g} epoch{'' if self.epochs == 1 else 's'} / {self.batch}"
        if self.tokens:
            how = f"{_many(self.rows, 'row')} × {self.epochs:g} epoch{'' if self.epochs == 1 else 's'}, {self.tokens}"
        elif self.max_steps:
            how = f"train.max_steps={self.max_steps}"
        few = ": probably too few to see a change" if self.few else ""
        held = f" ({_many(self.held_out, 'row')} held out)" if self.held_out else ""
        return f"{how} = {'about ' if self.about else ''}{_many(self.steps, 'step')}{few}{held}"


def steps_of(
    run: TrainRun,
    readable: int,
    counts: Sequence[int],
    *,
    other_kind: bool = False,
    lengths: Sequence[int] = (),
) -> Steps:
    """``readable``: training rows that could be read; ``counts``: the rows of each training set; ``other_kind``: some rows are
    not what the stage learns from. ``lengths``: tokens of the readable rows in their order, or of a sample of them."""
    loop = run.train
    held = 0 if run.data.eval else held_out_count(readable, run.data.eval_share)
    rows = max(0, _rows_per_epoch(run, readable, counts, held))
    words = _limits_in_tokens(run)
    none: No = "no_rows" if not rows else "other_kind" if other_kind else ""
    if not none and words and not len(lengths):
        none = "tokens_unknown"
    order, exact = Order([1] * rows, loop.batch, loop.seed), True
    if words and not none:
        taken, exact = _lengths_of_epoch(run, rows, readable, lengths)
        order = Order(taken.tolist(), loop.batch, loop.seed, loop.batch_tokens)
    steps = 0 if none else order.total(loop.epochs, loop.max_steps, loop.max_tokens)
    few = not none and steps < FEW_STEPS
    limit = loop.max_steps or 0
    return Steps(run.stage.kind, rows, loop.epochs, loop.batch, limit, held, steps, few, none, words, not exact)


def _limits_in_tokens(run: TrainRun) -> str:
    known = {"train.batch_tokens": run.train.batch_tokens, "train.max_tokens": run.train.max_tokens}
    return ", ".join(f"{key}={value}" for key, value in known.items() if value is not None)


def _lengths_of_epoch(run: TrainRun, rows: int, readable: int, lengths: Sequence[int]) -> tuple[np.ndarray, bool]:
    """Tokens of the rows of an epoch, and whether they are exactly training's: rows drawn from those known when mixed or sampled."""
    known = np.asarray(lengths, dtype=np.int64)
    if len(known) == readable:
        out = held_out(readable, run.data, run.train.seed)
        kept = known[[row for row in range(readable) if row not in out]]
        if len(kept) == rows:
            return kept, True
    return np.random.default_rng(run.train.seed).choice(known, rows), False


def held_out(rows: int, data: DataConfig, seed: int) -> frozenset[int]:
    """The rows that training holds out when there is no evaluation set (of rows that can all be read)."""
    return frozenset() if data.eval else held_out_numbers(rows, data.eval_share, seed)


def _rows_per_epoch(run: TrainRun, readable: int, counts: Sequence[int], held: int) -> int:
    data = run.data
    if len(data.train) == 1 and data.train[0].weight == 1 and data.mix == "concat":
        return readable - held
    left = list(counts)
    ends = [sum(left[: i + 1]) for i in range(len(left))]
    for row in held_out(ends[-1], data, run.train.seed):
        left[next(i for i, end in enumerate(ends) if row < end)] -= 1
    weights = [choice.weight for choice in data.train]
    return len(
        order(left, weights, mix=data.mix, probabilities=data.probabilities, stop=data.stop, seed=run.train.seed)
    )


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
