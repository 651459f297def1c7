"""HTML tags and entities left over from a web page."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from tunesmith.data.doctor import base

_ENTITY = re.compile(
    r"&(?:nbsp|amp|lt|gt|quot|apos|hellip|mdash|ndash|ldquo|rdquo|lsquo|rsquo|copy|#\d{2,6}|#x[0-9a-f]{2,5});", re.I
)
_TAG = re.compile(
    r"</?(?:p|br|div|span|a|b|i|u|em|strong|font|img|ul|ol|li|h[1-6]|table|tr|td|th|tbody|center|script|style)(?:\s[^<>]{0,300})?/?>",
    re.I,
)
_ABOUT_CODE = re.compile(r"```|\bhtml\b|\bxml\b|\bcss\b|javascript|\bjsx?\b|markdown|网页|标签", re.I)


class Check(base.Check):
    """Rows about HTML, and rows with code, hold tags on purpose and are not looked at."""

    title = "HTML left-overs"
    mends = "turns entities into characters; leaves tags, since what they stood for is not known"

    def row(self, row: base.Row) -> Iterable[base.Finding]:
        text = row.text
        entity = "&" in text and _ENTITY.search(text)
        tag = "<" in text and _TAG.search(text)
        if not (entity or tag) or _ABOUT_CODE.search(text):
            return
        for piece in row.pieces:
            first = _ENTITY.search(piece.text)
            if first:
                yield row.finding(
                    "warning",
                    f"{piece.where}: HTML entities such as {first[0]}",
                    "write the characters themselves",
                    base.shorten(piece.text, first.start()),
                    "change",
                )
            first = _TAG.search(piece.text)
            if first:
                yield row.finding(
                    "warning",
                    f"{piece.where}: HTML tags such as {base.shorten(first[0], width=30)}",
                    "take the text out of the page without its tags",
                    base.shorten(piece.text, first.start()),
                )

    def clean(self, text: str) -> str:
        return _ENTITY.sub(lambda found: html.unescape(found[0]).replace("\xa0", " "), text)
