"""Rows that lose turns because they are longer than ``data.max_length``."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.doctor.base import Finding, Row
from tunesmith.render.checks import base
from tunesmith.render.sides import Side


class Check(base.Check):
    """Whole turns are dropped, never the end of an answer; what is dropped is not learned."""

    title = "rows that are shortened"

    def row(self, row: Row, sides: tuple[Side, ...]) -> Iterable[Finding]:
        for side in sides:
            dropped = side.rendered.dropped_turns
            if dropped:
                which = f"the {side.label} side " if side.label else ""
                yield row.finding(
                    "warning",
                    f"{which}loses {dropped} of {len(row.pieces)} turns to fit data.max_length={self.context.max_length}; "
                    f"{len(side.rendered.ids)} tokens are left",
                    "raise data.max_length, or split the conversation",
                )
