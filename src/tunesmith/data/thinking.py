"""What an assistant thought before it answered: the block ``<think>…</think>`` at the beginning of its text.

Rule for white space (that of the published chat templates that write such blocks): line breaks just inside the two tags and
those between ``</think>`` and the answer belong to the block, not to the thought or the answer. Everything else is kept.
``Parts.text`` is the text exactly as it was; ``block`` writes the usual form. A block without a thought
(``<think>\\n\\n</think>``) is left in the text: some templates write it and some data wants it learned.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.config.errors import DataError

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Parts:
    """A text taken apart; the four in a row are the text. ``opening`` and ``closing`` are the tags with their line breaks."""

    opening: str
    thinking: str
    closing: str
    answer: str

    @property
    def text(self) -> str:
        return self.opening + self.thinking + self.closing + self.answer


def take_apart(text: str, place: str) -> Parts:
    """The parts of an assistant's text; all but ``answer`` are empty when it does not begin with a thought.

    Raises DataError when the block is not closed.
    """
    if not text.lstrip().startswith(OPEN):
        return Parts("", "", "", text)
    if CLOSE not in text:
        raise DataError(
            f"{place}: {OPEN} is not closed: {text.strip()[:40]!r}",
            hint=f"write {CLOSE} where the thought ends and the answer begins (a cut-off answer has none: take the row out)",
        )
    inside, _, after = text.partition(CLOSE)
    start = inside.index(OPEN) + len(OPEN)
    thinking = inside[start:].strip("\n")
    if not thinking.strip():
        return Parts("", "", "", text)
    answer = after.lstrip("\n")
    begin = len(inside) - len(inside[start:].lstrip("\n"))
    end = begin + len(thinking)
    return Parts(text[:begin], thinking, text[end : len(text) - len(answer)], answer)


def block(thinking: str, answer: str) -> str:
    """Thought and answer as one text, for templates that have no place for thoughts; ``take_apart`` gives both back."""
    return f"{OPEN}\n{thinking}\n{CLOSE}\n\n{answer}" if thinking else answer


def without_empty_block(text: str) -> str:
    """The text without a block that holds no thought at its beginning."""
    if not text.lstrip().startswith(OPEN):
        return text
    inside, _, after = text.partition(CLOSE)
    return text if inside.strip() != OPEN else after.lstrip("\n")
