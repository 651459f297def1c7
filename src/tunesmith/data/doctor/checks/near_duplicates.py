"""Rows that are almost the same as an earlier one (MinHash, ``data.doctor.fingerprints``)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tunesmith.data.doctor import base
from tunesmith.data.doctor.fingerprints import first_of_equal, near

THRESHOLD = 0.8
"""Estimated share of shingles in common; the estimate is off by about 0.05."""


class Check(base.Check):
    """System turns are not compared (all rows often share one), texts below 40 bytes neither."""

    title = "near duplicates"
    mends = "leaves them: rows made from one pattern are often meant"

    def end(self) -> Iterable[base.Finding]:
        self.partner, self.score = near(self.context.train.signatures, THRESHOLD)
        same = first_of_equal(self.context.train.whole) != np.arange(len(self.partner))
        self.partner[same] = -1  # those are duplicates already
        return ()

    def again_rows(self) -> Iterable[int]:
        return np.flatnonzero(self.partner >= 0)

    def again(self, row: base.Row) -> Iterable[base.Finding]:
        partner = int(self.partner[row.index])
        if partner >= 0:
            yield row.finding(
                "warning",
                f"about {self.score[row.index]:.0%} the same as {self.context.train.origins[partner]}",
                "keep the better one, unless both are meant",
            )
