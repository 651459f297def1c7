"""Plain text: rows ``{"text": …}``. A row is a line, a paragraph (ended by blank lines) or the whole document."""

from __future__ import annotations

from typing import BinaryIO

from tunesmith.data.decode import chunks, lines
from tunesmith.data.files.base import ROW_LIMIT, Options, Rows, too_long

SUFFIXES = (".txt", ".text")
SEEKS = False


def rows(file: BinaryIO, name: str, options: Options) -> Rows:
    """``origin`` is ``name:line``, the line on which the row begins."""
    if options.text_unit == "document":
        pieces, size = [], 0
        for piece in chunks(file, name):
            size += len(piece)
            if size > ROW_LIMIT:
                raise too_long(name)
            pieces.append(piece)
        if text := "".join(pieces).strip():
            yield f"{name}:1", {"text": text}
        return
    if options.text_unit == "line":
        for number, line in lines(file, name):
            if not line.isspace():
                yield f"{name}:{number}", {"text": line.rstrip("\r\n")}
        return
    paragraph: list[str] = []
    begins, size = 1, 0
    for number, line in lines(file, name):
        if line.isspace():
            if paragraph:
                yield f"{name}:{begins}", {"text": "".join(paragraph).rstrip()}
            paragraph, size = [], 0
            continue
        begins = number if not paragraph else begins
        paragraph.append(line)
        size += len(line)
        if size > ROW_LIMIT:
            raise too_long(f"{name}:{begins}")
    if paragraph:
        yield f"{name}:{begins}", {"text": "".join(paragraph).rstrip()}
