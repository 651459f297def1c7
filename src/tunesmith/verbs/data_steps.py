"""How many optimizer steps a config makes of the rows of its sets, as numbers and as a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.data.config import DataConfig
from tunesmith.data.mix import order
from tunesmith.data.split import held_out_count, held_out_numbers
from tunesmith.train.order import total_steps
from tunesmith.verbs.run_config import TrainRun

FEW_STEPS = 30
"""Optimizer steps; below, a change is seldom seen."""


@dataclass(frozen=True)
class Steps:
    """``rows`` per epoch (after ``held_out`` rows were taken away, weights and mixing), ``batch`` of rows per optimizer step.
    ``max_steps`` 0 = as many as the epochs make. ``steps`` is 0 with a reason in ``none``: no row is left, or the ``stage``
    cannot learn from the rows. ``few``: too few to see a change."""

    stage: str
    rows: int
    epochs: float
    batch: int
    max_steps: int
    held_out: int
    steps: int = 0
    few: bool = False
    none: Literal["", "no_rows", "other_kind"] = ""

    def line(self) -> str:
        """The same in words."""
        if self.none == "no_rows":
            return "no row is left to train on"
        if self.none == "other_kind":
            return f"the stage {self.stage} learns from other rows than these: see below"
        how = f"{_many(self.rows, 'row')} × {self.epochs:g} epoch{'' if self.epochs == 1 else 's'} / {self.batch}"
        if self.max_steps:
            how = f"train.max_steps={self.max_steps}"
        few = ": probably too few to see a change" if self.few else ""
        held = f" ({_many(self.held_out, 'row')} held out)" if self.held_out else ""
        return f"{how} = {_many(self.steps, 'step')}{few}{held}"


def steps_of(run: TrainRun, readable: int, counts: Sequence[int], *, other_kind: bool = False) -> Steps:
    """``readable``: training rows that could be read; ``counts``: the rows of each training set; ``other_kind``: some rows are
    not what the stage learns from."""
    loop = run.train
    held = 0 if run.data.eval else held_out_count(readable, run.data.eval_share)
    rows = max(0, _rows_per_epoch(run, readable, counts, held))
    none: Literal["", "no_rows", "other_kind"] = "no_rows" if not rows else "other_kind" if other_kind else ""
    steps = 0 if none else total_steps(rows, loop.batch, loop.epochs, loop.max_steps)
    few = not none and steps < FEW_STEPS
    return Steps(run.stage.kind, rows, loop.epochs, loop.batch, loop.max_steps or 0, held, steps, few, none)


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
