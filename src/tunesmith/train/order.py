"""Which rows each optimizer step learns: a function of seed, epoch and step alone, so that a resumed run goes on exactly."""

from __future__ import annotations

import math
import random
from functools import lru_cache


def steps_per_epoch(rows: int, batch: int) -> int:
    """Optimizer steps of one epoch; the last step takes what is left."""
    return math.ceil(rows / batch)


def total_steps(rows: int, batch: int, epochs: float, max_steps: int | None) -> int:
    """All optimizer steps of a run."""
    return max_steps if max_steps is not None else max(1, math.ceil(steps_per_epoch(rows, batch) * epochs))


def rows_of_step(step: int, rows: int, batch: int, seed: int) -> list[int]:
    """Indices of the rows of optimizer step ``step`` (1, 2, …): each epoch is a fresh permutation."""
    per_epoch = steps_per_epoch(rows, batch)
    epoch, place = divmod(step - 1, per_epoch)
    return list(_permutation(rows, seed, epoch)[place * batch : (place + 1) * batch])


@lru_cache(maxsize=2)
def _permutation(rows: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The order of one epoch, kept while its steps are taken."""
    order = list(range(rows))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return tuple(order)
