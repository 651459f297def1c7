"""Characters that nobody sees and a tokenizer does: control and zero-width characters, lone surrogates, U+FFFD."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from tunesmith.data.doctor import base

# U+200C and U+200D are left alone: Persian, Hindi and emoji need them. \x1f joins the pieces of a row.
_HIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u200b\u2060\ufeff]")
_ANY = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1e\x7f-\x84\x86-\x9f\u200b\u2060\ufeff\ufffd\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Check(base.Check):
    """Half a character (a lone surrogate) cannot be written as UTF-8 and no tokenizer takes it: an error."""

    title = "invisible or broken characters"
    mends = "removes control and zero-width characters, drops rows with half characters, leaves U+FFFD"

    def row(self, row: base.Row) -> Iterable[base.Finding]:
        if not _ANY.search(row.text) and row.text.count(base.SEPARATOR) < len(row.pieces):
            return
        for piece in row.pieces:
            yield from self._piece(row, piece)

    def _piece(self, row: base.Row, piece: base.Piece) -> Iterable[base.Finding]:
        half = _SURROGATE.search(piece.text)
        if half:
            yield row.finding(
                "error",
                f"{piece.where}: half a character (U+{ord(half[0]):04X}, a lone surrogate)",
                "write the whole character, or remove it",
                base.shorten(piece.text, half.start()),
                "drop",
            )
        hidden = _HIDDEN.findall(piece.text)
        if hidden:
            kinds = ", ".join(dict.fromkeys(f"U+{ord(c):04X} {unicodedata.name(c, 'control').lower()}" for c in hidden))
            yield row.finding(
                "warning",
                f"{piece.where}: {len(hidden)} invisible characters ({kinds})",
                "remove them; the model would learn to write them",
                base.shorten(piece.text, _HIDDEN.search(piece.text).start()),  # type: ignore[union-attr]
                "change",
            )
        lost = piece.text.find("\ufffd")
        if lost >= 0:
            yield row.finding(
                "warning",
                f"{piece.where}: {piece.text.count(chr(0xFFFD))} × U+FFFD, characters that were lost in a conversion",
                "take the text from its source again",
                base.shorten(piece.text, lost),
            )

    def clean(self, text: str) -> str:
        return _HIDDEN.sub("", text)
