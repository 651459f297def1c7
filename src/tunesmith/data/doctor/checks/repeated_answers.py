"""One answer given to many different questions."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tunesmith.data.doctor import base

MANY = 5
"""Different questions."""
SHORTEST = 20
"""Characters; shorter answers ("yes", "positive") are labels."""


class Check(base.Check):
    """By 64-bit hash of the last answer; each such answer is told once, at its first row."""

    title = "one answer to many questions"

    def end(self) -> Iterable[base.Finding]:
        answers, questions = self.context.train.answer, self.context.train.question
        order = np.argsort(answers, kind="stable")
        bounds = np.flatnonzero(np.diff(answers[order])) + 1
        self.count: dict[int, int] = {}
        for at, end in zip(np.concatenate(([0], bounds)), np.concatenate((bounds, [len(order)]))):
            rows = order[at:end]
            if len(rows) >= MANY and answers[rows[0]] and questions[rows[0]]:
                different = len(np.unique(questions[rows]))
                if different >= MANY:
                    self.count[int(rows[0])] = different
        return ()

    def again_rows(self) -> Iterable[int]:
        return sorted(self.count)

    def again(self, row: base.Row) -> Iterable[base.Finding]:
        count = self.count.get(row.index)
        text = base.answer_of(row.example)
        if count and len(text) >= SHORTEST:
            share = count / len(self.context.train)
            yield row.finding(
                "warning" if share > 0.01 or count >= 100 else "info",
                f"this answer is given to {count:,} different questions",
                "the model will give it to other questions too; keep a few of them",
                base.shorten(text),
            )
