"""Answers far longer or far shorter than the rest of the set."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np

from tunesmith.data.doctor import base

FEWEST = 20
"""Answers needed to say what is usual."""


class Check(base.Check):
    """Lengths in characters against the median: 20 times as long and over 4,000, or below 5 where the median is over 100."""

    title = "very long or very short answers"

    def __init__(self, context: base.Context) -> None:
        super().__init__(context)
        self.rows, self.lengths = array("i"), array("i")

    def row(self, row: base.Row) -> Iterable[base.Finding]:
        if row.part == "train":
            for piece in row.answers():
                if piece.text.strip():
                    self.rows.append(row.index)
                    self.lengths.append(min(len(piece.text.strip()), 2**31 - 1))
        return ()

    def end(self) -> Iterable[base.Finding]:
        lengths = np.array(self.lengths, dtype=np.int64)
        self.median = float(np.median(lengths)) if len(lengths) >= FEWEST else 0.0
        self.long = max(20 * self.median, 4000)
        self.short = 5 if self.median > 100 else 0
        odd = (lengths > self.long) | (lengths < self.short) if self.median else np.zeros(len(lengths), dtype=bool)
        self.odd = np.unique(np.array(self.rows, dtype=np.int64)[odd])
        return ()

    def again_rows(self) -> Iterable[int]:
        return self.odd

    def again(self, row: base.Row) -> Iterable[base.Finding]:
        for piece in row.answers():
            length = len(piece.text.strip())
            if self.median and length and (length > self.long or length < self.short):
                yield row.finding(
                    "info",
                    f"{piece.where}: {length:,} characters, where the median of the set is {self.median:,.0f}",
                    "look whether it belongs here",
                    base.shorten(piece.text),
                )
