"""Answers whose first token also holds the end of the prompt."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.doctor.base import Finding, Row
from tunesmith.render.checks import base
from tunesmith.render.sides import Side


class Check(base.Check):
    """Such a token is not learned: when serving, the prompt ends before it."""

    title = "first tokens across the border of the prompt"

    def row(self, row: Row, sides: tuple[Side, ...]) -> Iterable[Finding]:
        count = sum(side.rendered.straddling for side in sides)
        if count:
            yield row.finding(
                "info",
                f"the first token of {count} answers also holds the end of the prompt and is not learned",
                "remove white space at the beginning of answers; some templates end their prompt with some",
            )
