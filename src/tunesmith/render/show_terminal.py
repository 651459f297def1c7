"""Rendered rows for a terminal: what is learned is green, special tokens stand out; marks ⟦ ⟧ where there are no colours."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from tunesmith.render.segments import Segment

LEARNED, SPECIAL, LEARNED_SPECIAL, PLAIN = "green", "magenta", "bold black on green", ""
_OPEN, _CLOSE = "⟦", "⟧"


def coloured(pieces: Iterable[Segment], *, marks: bool) -> Text:
    """One text. ``marks``: learned runs between ⟦ and ⟧, for pipes and files."""
    text = Text()
    inside = False
    for piece in pieces:
        if marks and piece.learned != inside:
            text.append(_OPEN if piece.learned else _CLOSE)
            inside = piece.learned
        style = (
            (LEARNED_SPECIAL if piece.special else LEARNED) if piece.learned else SPECIAL if piece.special else PLAIN
        )
        text.append(visible(piece.text), style=style)
    if marks and inside:
        text.append(_CLOSE)
    return text


def visible(text: str) -> str:
    """Control characters written out, so that data cannot steer the terminal; line ends and tabs stay."""
    return "".join([c if c.isprintable() or c in "\n\t" else f"‹U+{ord(c):04X}›" for c in text])
