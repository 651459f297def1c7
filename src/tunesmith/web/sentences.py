"""Sentences of the command in the page's language. It speaks English; the tables hold its standard sentences word for word, and their
translations under the same keys. What is not among them is shown as the command says it."""

from __future__ import annotations

import re

from tunesmith.web.language import Texts, table

REASONS = (
    "reason.named", "reason.no_answer", "reason.verdict", "reason.three_keys", "reason.two_keys", "reason.one_key",
    "reason.prompted_pair", "reason.pair", "reason.turns",
)  # fmt: skip
"""The closest first: the last ones would take the others' sentences too."""


def mend_in_words(check: str, sentence: str, t: Texts) -> str:
    """What to do about a finding of a check (``data check`` --json: ``mend``)."""
    keys = [key for key in table("en") if key.startswith(f"mend.{check}")]
    return _in_words(sentence, keys, t)


def reason_in_words(sentence: str, t: Texts) -> str:
    """Why the rows are taken for a format (``reason``)."""
    return _in_words(sentence, REASONS, t)


def _in_words(sentence: str, keys: list[str] | tuple[str, ...], t: Texts) -> str:
    for key in keys:
        found = re.fullmatch(re.sub(r"\\{(\w+)\\}", r"(?P<\1>'[^']*')", re.escape(table("en")[key])), sentence)
        if found:
            return t(key, **found.groupdict())
    return sentence
