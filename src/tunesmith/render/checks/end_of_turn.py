"""Answers that are not followed by an end-of-turn token: the model would not learn to stop."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.doctor.base import Finding, Row
from tunesmith.data.example import Prompt, Text
from tunesmith.render.checks import base
from tunesmith.render.conversation import Rendered
from tunesmith.render.sides import Side


class Check(base.Check):
    """Told once when the template never writes such a token; per row when it does, but not after this row's last answer."""

    title = "answers without an end of turn"

    def row(self, row: Row, sides: tuple[Side, ...]) -> Iterable[Finding]:
        if self.context.end_of_turn is None or isinstance(row.example, Prompt | Text):
            return
        token, written = self.context.end_of_turn
        for side in sides:
            if not _ends(side.rendered, token):
                yield row.finding(
                    "warning",
                    f"the last learned text does not end with {written}",
                    "look at it with `tunesmith data show`; the chat template treats this row differently",
                )

    def end(self) -> Iterable[Finding]:
        if self.context.end_of_turn is None:
            yield Finding(
                "warning",
                "the chat template of this model puts no special token after an answer; the model may not learn to stop",
                "take a model, or a template (model.template), that ends its turns",
            )


def _ends(rendered: Rendered, token: int) -> bool:
    """Whether nothing but white space is learned after the last ``token`` (a line break may be, where everything is learned)."""
    learned = [t for t, flag in enumerate(rendered.mask) if flag]
    ends = [t for t in learned if rendered.ids[t] == token]
    after = [rendered.text[slice(*rendered.offsets[t])] for t in learned if ends and t > ends[-1]]
    return not learned or (bool(ends) and not "".join(after).strip())
