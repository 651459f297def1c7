"""One question with several different answers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tunesmith.data.doctor import base
from tunesmith.data.doctor.fingerprints import first_of_equal


class Check(base.Check):
    """By 64-bit hashes of everything before the last answer, and of that answer. Preference pairs and prompts are not looked at:
    there several answers to one question are what is wanted."""

    title = "one question, different answers"

    def end(self) -> Iterable[base.Finding]:
        questions, answers = self.context.train.question, self.context.train.answer
        self.first = first_of_equal(questions)
        self.other = (questions != 0) & (answers != 0) & (answers != answers[self.first])
        return ()

    def again_rows(self) -> Iterable[int]:
        return np.flatnonzero(self.other)

    def again(self, row: base.Row) -> Iterable[base.Finding]:
        if self.other[row.index]:
            yield row.finding(
                "warning",
                f"another answer than {self.context.train.origins[int(self.first[row.index])]} gives to the same question",
                "keep the right one, unless several answers are meant",
            )
