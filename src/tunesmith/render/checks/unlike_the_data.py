"""What the chat template shows in another way than the row says it: thinking, words beside tool calls, tools."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.doctor.base import Finding, Row
from tunesmith.render.checks import base
from tunesmith.render.sides import Side

COUNTS = {
    "dropped_thinking": "{n} answers have thinking that the template does not show; it is not learned",
    "dropped_words": "{n} turns call a tool and say something that the template does not show; it is not learned",
    "unlike_serving": "{n} answers are learned after another prompt than the one they will be asked after",
    "ignored_tools": "{n} tools are not shown to the model by its template",
}
"""Counts of ``Rendered`` -> what they mean."""


class Check(base.Check):
    """Told by the renderer, row by row."""

    title = "what the chat template shows differently"

    def row(self, row: Row, sides: tuple[Side, ...]) -> Iterable[Finding]:
        for field, words in COUNTS.items():
            count = sum(getattr(side.rendered, field, 0) for side in sides)
            if count:
                yield row.finding(
                    "info",
                    words.format(n=count),
                    "look at the row with `tunesmith data show`; another model or template (model.template) may fit better",
                )
