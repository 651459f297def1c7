"""Answers that seem to end in the middle of a sentence: the model would learn to stop there."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tunesmith.data.doctor import base

LONG = 200
"""Characters; short answers often end without a full stop on purpose."""
_OPEN = re.compile(
    r"(?:[,;:、，；：]|\b(?:the|a|an|and|or|of|to|in|with|for|that|is|are|is a)|[的和与在是而且把被])\s*\Z", re.I
)
_WORD = re.compile(r"[^\W\d_]\Z")


class Check(base.Check):
    """A hint only: long prose whose last line ends with a letter, a comma or a word that asks for another."""

    title = "answers that may be cut off"

    def row(self, row: base.Row) -> Iterable[base.Finding]:
        for piece in row.answers():
            text = piece.text.rstrip()
            if len(text) < LONG or not (_WORD.search(text) or _OPEN.search(text)):
                continue
            last = text.rpartition("\n")[2]
            # Lists, tables, code and verse end their lines without a stop; so do lines shorter than a sentence.
            if (
                text.count("```") % 2
                or _OPEN.search(text)
                or (len(last) > 60 and text.count(".") + text.count("。") > 1)
            ):
                yield row.finding(
                    "info",
                    f"{piece.where}: the answer seems to end in mid-sentence",
                    "complete the answer, or remove it",
                    base.shorten(text, len(text) - 1, 60),
                )
