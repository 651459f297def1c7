"""Text that was decoded with the wrong encoding on its way here ("cafÃ©", "ä½\xa0å¥½", "浣犲ソ", "锟斤拷")."""

from __future__ import annotations

import re
from collections.abc import Iterable

import ftfy
from ftfy.badness import is_bad

from tunesmith.data.doctor import base

_LOST = re.compile("锟斤拷|烫烫烫|屯屯屯")
"""U+FFFD written as UTF-8 and read as GBK; memory of Microsoft's debug heap read as GBK."""
_LEAD = re.compile("[\xc2-\xf4]")
"""The first byte of a UTF-8 sequence, read as Latin-1: without one there is nothing for ftfy to find."""
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]{3,}")
_CHINESE = re.compile(r"[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]{2,}")


class Check(base.Check):
    """UTF-8 read as Latin-1 or Windows-1252 is found and mended by ftfy; UTF-8 read as GBK here: Chinese text whose GBK bytes
    happen to be UTF-8 for Chinese text is no accident."""

    title = "wrong encoding"
    mends = "repairs the text where that can be done exactly, and leaves what is lost (锟斤拷)"

    def row(self, row: base.Row) -> Iterable[base.Finding]:
        if row.text.isascii():
            return
        for piece in row.pieces:
            text = piece.text
            if text.isascii():
                continue
            lost = _LOST.search(text)
            if lost:
                yield row.finding(
                    "warning",
                    f"{piece.where}: {lost[0]!r}: characters that were lost in a wrong conversion",
                    "take the text from its source again",
                    base.shorten(text, lost.start()),
                )
                continue
            clean = self.clean(text)
            if clean != text:
                at = next((i for i, (a, b) in enumerate(zip(text, clean)) if a != b), 0)
                yield row.finding(
                    "warning",
                    f"{piece.where}: read with the wrong encoding; it should be {base.shorten(clean, at, 40)!r}",
                    "read the file in its own encoding, or repair it with ftfy",
                    base.shorten(text, at),
                    "change",
                )

    def clean(self, text: str) -> str:
        if _LEAD.search(text) and is_bad(text):
            text = ftfy.fix_encoding(text)
        return _BEYOND_ASCII.sub(_from_gbk, text)


def _from_gbk(found: re.Match[str]) -> str:
    try:
        repaired = found[0].encode("gb18030").decode("utf-8")
    except UnicodeError:
        return found[0]
    return repaired if _CHINESE.fullmatch(repaired) else found[0]
