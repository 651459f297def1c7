"""Preference pairs whose two sides are the same: there is nothing to prefer."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.doctor import base
from tunesmith.data.example import Message, Preference


class Check(base.Check):
    """White space at the ends does not count. The loss of such a pair is a constant: it teaches nothing."""

    title = "preference pairs with equal sides"
    mends = "drops the row"

    def row(self, row: base.Row) -> Iterable[base.Finding]:
        example = row.example
        if isinstance(example, Preference) and _plain(example.chosen) == _plain(example.rejected):
            yield row.finding(
                "error",
                "the chosen and the rejected answer are the same",
                "give a worse answer as the rejected one, or remove the row",
                base.shorten(base.answer_of(example)),
                "drop",
            )


def _plain(turns: tuple[Message, ...]) -> list[tuple[object, ...]]:
    return [(m.role, m.content.strip(), m.thinking.strip(), m.tool_calls) for m in turns]
