"""Which words of a text another text does not have in the same place."""

from __future__ import annotations

import difflib
import re

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|\s+|[^\w\s]", re.UNICODE)
"""Words, runs of white space, signs; Chinese, Japanese and Korean characters one by one."""
MOST = 3000
"""Texts of more words are not compared: the time grows with the product of their lengths."""


def changed_words(before: str, after: str) -> list[tuple[str, bool]]:
    """``after`` in pieces, each with whether ``before`` lacks it there. White space alone is no change.

    Joined, the pieces are ``after``. One piece, unchanged, when a text is longer than ``MOST`` words.
    """
    first, second = WORD.findall(before), WORD.findall(after)
    if max(len(first), len(second)) > MOST:
        return [(after, False)] if after else []
    found: list[tuple[str, bool]] = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        piece = "".join(second[start:end])
        changed = kind in ("insert", "replace") and bool(piece.strip())
        if piece and found and found[-1][1] == changed:
            found[-1] = (found[-1][0] + piece, changed)
        elif piece:
            found.append((piece, changed))
    return found
