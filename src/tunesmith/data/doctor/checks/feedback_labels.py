"""Feedback where everything is good, or everything is bad."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.doctor import base
from tunesmith.data.example import Feedback


class Check(base.Check):
    """KTO (Ethayarajh et al., 2024, arXiv:2402.01306) needs both, weighted between 1:1 and 4:3 in effect."""

    title = "feedback of one kind"

    def __init__(self, context: base.Context) -> None:
        super().__init__(context)
        self.good = self.bad = 0

    def row(self, row: base.Row) -> Iterable[base.Finding]:
        if row.part == "train" and isinstance(row.example, Feedback):
            self.good += row.example.good
            self.bad += not row.example.good
        return ()

    def end(self) -> Iterable[base.Finding]:
        fewer, more = sorted((self.good, self.bad))
        if more >= 10 and fewer * 20 < more:
            yield base.Finding(
                "warning",
                f"{self.good:,} answers are marked good and {self.bad:,} bad",
                "add answers of the other kind, or check that the tag is read the right way round",
            )
