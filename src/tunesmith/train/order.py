"""Which rows each optimizer step learns: a function of lengths, seed and step alone, so that a resumed run goes on exactly.

A batch counts rows, or tokens: then rows are taken in the epoch's order until the next one would exceed the budget (a row longer than
the budget is a step of its own). Either way an epoch's last step takes what is left, and each epoch is a fresh permutation.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache

import numpy as np


class Order:
    """The steps of a run over rows of these ``lengths`` (tokens).

    ``batch``: rows per step; ``batch_tokens``: most tokens per step in place of it. Per epoch a permutation is made when one of its
    steps is asked for (0.6 s for a million rows); two of them, and where each step of every epoch begins, are kept.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, batch_tokens: int | None = None) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.batch, self.seed, self.batch_tokens = batch, seed, batch_tokens
        self._permutation = lru_cache(maxsize=2)(self._shuffled)
        self._begins: list[np.ndarray] = []
        self._before = [0]  # steps before each epoch

    def total(self, epochs: float, max_steps: int | None = None, max_tokens: int | None = None) -> int:
        """All optimizer steps of a run: the first of ``max_steps`` and ``max_tokens`` that is reached, else ``epochs``."""
        limits = [] if max_steps is None else [max_steps]
        if max_tokens is not None:
            limits.append(self.step_of_token(max_tokens, limits[0] if limits else None))
        return min(limits) if limits else max(1, self.steps_in(epochs))

    def steps_in(self, epochs: float) -> int:
        """Steps of so many epochs; of a part of an epoch, the same part of its steps, rounded up."""
        if self.batch_tokens is None:
            return math.ceil(math.ceil(len(self.lengths) / self.batch) * epochs)
        whole = int(epochs)
        part = epochs - whole
        return self._steps_before(whole) + (math.ceil(len(self._begins_of(whole)) * part - 1e-9) if part else 0)

    def step_of_token(self, tokens: int, at_most: int | None = None) -> int:
        """The step that brings the tokens seen to ``tokens`` or above (``at_most``: look no further than this step)."""
        epoch_tokens = int(self.lengths.sum())
        epoch = (tokens - 1) // epoch_tokens
        if at_most is not None and self._epoch_of(at_most)[0] < epoch:
            return at_most
        left = tokens - epoch * epoch_tokens
        seen = self._seen_after(epoch)
        return self._steps_before(epoch) + int(np.searchsorted(seen, left)) + 1

    def rows(self, step: int) -> list[int]:
        """Indices of the rows of optimizer step ``step`` (1, 2, …)."""
        epoch, place = self._epoch_of(step)
        begins = self._begins_of(epoch)
        end = int(begins[place + 1]) if place + 1 < len(begins) else len(self.lengths)
        found: list[int] = self._permutation(epoch)[int(begins[place]) : end].tolist()
        return found

    def tokens(self, after: int, until: int) -> int:
        """Tokens of the steps ``after`` + 1 … ``until``."""
        return self._seen(until) - self._seen(after) if until > after else 0

    def epoch(self, step: int) -> float:
        """How many epochs are done after ``step``."""
        if step == 0:
            return 0.0
        epoch, place = self._epoch_of(step)
        return epoch + (place + 1) / len(self._begins_of(epoch))

    def ends_epoch(self, step: int) -> bool:
        """Is ``step`` the last one of its epoch?"""
        epoch, place = self._epoch_of(step)
        return place + 1 == len(self._begins_of(epoch))

    def _seen(self, step: int) -> int:
        """Tokens of the first ``step`` steps."""
        if step == 0:
            return 0
        epoch, place = self._epoch_of(step)
        return epoch * int(self.lengths.sum()) + int(self._seen_after(epoch)[place])

    def _seen_after(self, epoch: int) -> np.ndarray:
        """Tokens of an epoch seen after each of its steps."""
        running = np.cumsum(self.lengths[self._permutation(epoch)])
        found: np.ndarray = running[np.append(self._begins_of(epoch)[1:], len(self.lengths)) - 1]
        return found

    def _epoch_of(self, step: int) -> tuple[int, int]:
        """(epoch, place in it), both from 0, of step 1, 2, …"""
        if self.batch_tokens is None:
            return divmod(step - 1, math.ceil(len(self.lengths) / self.batch))
        while self._before[-1] < step:
            self._steps_before(len(self._before))
        epoch = int(np.searchsorted(self._before, step)) - 1
        return epoch, step - 1 - self._before[epoch]

    def _steps_before(self, epoch: int) -> int:
        if self.batch_tokens is None:
            return epoch * math.ceil(len(self.lengths) / self.batch)
        while len(self._before) <= epoch:
            self._before.append(self._before[-1] + len(self._begins_of(len(self._before) - 1)))
        return self._before[epoch]

    def _begins_of(self, epoch: int) -> np.ndarray:
        """Where in the epoch's permutation each of its steps begins."""
        if self.batch_tokens is None:
            return np.arange(0, len(self.lengths), self.batch)
        while len(self._begins) <= epoch:
            running = np.cumsum(self.lengths[self._permutation(len(self._begins))])
            begins, seen = [0], 0
            while True:
                following = int(np.searchsorted(running, seen + self.batch_tokens, side="right"))
                following = max(following, begins[-1] + 1)
                if following >= len(running):
                    break
                begins.append(following)
                seen = int(running[following - 1])
            self._begins.append(np.array(begins))
        return self._begins[epoch]

    def _shuffled(self, epoch: int) -> np.ndarray:
        rows = list(range(len(self.lengths)))
        random.Random(f"{self.seed}/{epoch}").shuffle(rows)
        return np.array(rows, dtype=np.int64)
