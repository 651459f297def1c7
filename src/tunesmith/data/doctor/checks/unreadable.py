"""Rows that the format cannot read: unknown roles, turns in the wrong order, missing columns, no text where text should be."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.config.errors import DataError
from tunesmith.data.doctor import base


class Check(base.Check):
    """Every ``DataError`` that reading a row gave."""

    title = "rows that cannot be read"
    mends = "drops the row"

    def unread(self, index: int, part: base.Part, error: DataError, excerpt: str) -> Iterable[base.Finding]:
        origins = (self.context.train if part == "train" else self.context.eval).origins
        mend = error.hint or "mend the row, or leave such rows out with data.skip_bad=true"
        yield base.Finding("error", error.message, mend, origins[index], excerpt, fix="drop", part=part, row=index)
