"""Evaluation rows that are trained on too: the evaluation loss then says too much good."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.doctor import base
from tunesmith.data.doctor.fingerprints import first_of_equal, near

THRESHOLD = 0.8


class Check(base.Check):
    """With an evaluation set: the same row, the same question, or almost the same text. With a held-out share: near duplicates on
    both sides of the split (rows that are equal are kept apart by the split itself)."""

    title = "evaluation rows in the training data"
    mends = "drops training rows that are equal to an evaluation row or ask the same question"

    def end(self) -> Iterable[base.Finding]:
        train, held = self.context.train, self.context.eval
        count = len(train)
        self.other = np.full(count, -1, dtype=np.int64)
        self.how = np.zeros(count, dtype=np.uint8)  # 1 almost, 2 the question, 3 the row
        if len(held):
            self._near(near(np.concatenate([held.signatures, train.signatures]), THRESHOLD)[0], len(held))
            for kind, a, b in ((2, held.question, train.question), (3, held.whole, train.whole)):
                first = first_of_equal(np.concatenate([a, b]))[len(a) :]
                found = (first < len(a)) & (b != 0)
                self.other[found], self.how[found] = first[found], kind
        elif self.context.held_out is not None:
            yield from self._split(self.context.held_out(count))

    def _near(self, partner: NDArray[np.int64], held: int) -> None:
        """A row's partner may be another training row that is like an evaluation row: follow it once."""
        partner = np.where(partner >= held, partner[partner], partner)[held:]
        found = (partner >= 0) & (partner < held)
        self.other[found], self.how[found] = partner[found], 1

    def _split(self, held_out: frozenset[int]) -> Iterable[base.Finding]:
        partner, _ = near(self.context.train.signatures, THRESHOLD)
        equal = first_of_equal(self.context.train.whole) != np.arange(len(partner))
        rows = np.flatnonzero((partner >= 0) & ~equal)
        across = [int(r) for r in rows if (int(r) in held_out) != (int(partner[r]) in held_out)]
        if across:
            a, b = across[0], int(partner[across[0]])
            origins = self.context.train.origins
            yield base.Finding(
                "warning",
                f"{len(across)} near duplicates lie on both sides of the split (for example {origins[a]} and {origins[b]}); "
                "the evaluation loss will look a little too good",
                "remove near duplicates, or name an evaluation set of your own with data.eval",
            )

    def again_rows(self) -> Iterable[int]:
        return np.flatnonzero(self.how)

    def again(self, row: base.Row) -> Iterable[base.Finding]:
        how = int(self.how[row.index])
        if how:
            origin = self.context.eval.origins[int(self.other[row.index])]
            words = {1: "is almost the same as", 2: "asks the same question as", 3: "is the same as"}[how]
            yield row.finding(
                "warning",
                f"{words} the evaluation row {origin}",
                "remove it from one of the two sets",
                fix="drop" if how > 1 else "",
            )
