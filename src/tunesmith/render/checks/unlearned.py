"""Rows without a learned token, and sets without any."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.doctor.base import Finding, Row
from tunesmith.render.checks import base
from tunesmith.render.sides import Side


class Check(base.Check):
    """Label coverage of 0 %. The first token is never learned, since nothing comes before it."""

    title = "rows without a learned token"
    mends = "drops the row"

    def __init__(self, context: base.TokenContext) -> None:
        super().__init__(context)
        self.rows = self.empty = 0

    def row(self, row: Row, sides: tuple[Side, ...]) -> Iterable[Finding]:
        if not any(side.learns for side in sides):
            return
        self.rows += 1
        if not any(any(side.rendered.mask[1:]) for side in sides):
            self.empty += 1
            yield row.finding(
                "error",
                "no token of it is learned (0 %)",
                "check `train` / `weight` of its turns and whether its answers have text",
                fix="drop",
            )

    def end(self) -> Iterable[Finding]:
        if self.rows and self.empty == self.rows:
            yield Finding(
                "error",
                "nothing is learned: 0 % of all tokens",
                "check the roles (`tags`), `train` / `weight` of the turns, and data.learn",
            )
