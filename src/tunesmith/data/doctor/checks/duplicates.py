"""Rows that are the same as an earlier row, word for word."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tunesmith.data.doctor import base
from tunesmith.data.doctor.fingerprints import first_of_equal


class Check(base.Check):
    """Equality of all turns with their roles, by 64-bit hash; white space at the ends of the row does not count."""

    title = "duplicates"
    mends = "drops the later ones"

    def end(self) -> Iterable[base.Finding]:
        self.first = first_of_equal(self.context.train.whole)
        return ()

    def again_rows(self) -> Iterable[int]:
        return np.flatnonzero(self.first != np.arange(len(self.first)))

    def again(self, row: base.Row) -> Iterable[base.Finding]:
        first = int(self.first[row.index])
        if first != row.index:
            origin = self.context.train.origins[first]
            yield row.finding(
                "warning", f"the same as {origin}", "keep one of them, unless it is meant to count more", fix="drop"
            )
