"""From the bytes of a text file to its lines: UTF-8 (with or without a byte-order mark), or UTF-16 and UTF-32 with one."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import PurePath
from typing import BinaryIO

from tunesmith.config.errors import DataError
from tunesmith.data.files.base import ROW_LIMIT, too_long

CHUNK = 1 << 20
MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip


def marked(head: bytes) -> tuple[int, str]:
    """Length of the byte-order mark at the beginning and the encoding it tells; (0, "utf-8") without one."""
    return next(((len(mark), name) for mark, name in MARKS if head.startswith(mark)), (0, "utf-8"))


def lines(file: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """(number, text with its line end) of every line. Raises DataError at the first that is no text."""
    for number, line in enumerate(_byte_lines(file, name), 1):
        if b"\0" in line:
            raise _nul(name, number)
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise _not_utf8(name, number) from None
        yield number, text


def chunks(file: BinaryIO, name: str) -> Iterator[str]:
    """The text in pieces of about a megabyte. Raises DataError with the line of what is no text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    source = _utf8(file, name)
    while True:
        chunk = source.read(CHUNK)
        if (nul := chunk.find(b"\0")) >= 0:
            raise _nul(name, line + chunk.count(b"\n", 0, nul))
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise _not_utf8(name, line + error.object.count(b"\n", 0, error.start)) from None
        line += chunk.count(b"\n")
        if text:
            yield text
        if not chunk:
            return


def _byte_lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    source = _utf8(file, name)
    number = 0
    while line := source.readline(ROW_LIMIT + 1):
        number += 1
        if len(line) > ROW_LIMIT:
            raise too_long(f"{name}:{number}")
        yield line


def _utf8(file: BinaryIO, name: str) -> BinaryIO:
    """The file as UTF-8 without its mark."""
    source = file if isinstance(file, io.BufferedReader) else io.BufferedReader(file, CHUNK)  # type: ignore[type-var]
    length, encoding = marked(source.peek(4)[:4])
    source.read(length)
    if encoding != "utf-8":
        source = io.BufferedReader(_Recoded(source, encoding, name), CHUNK)
    head = source.peek(CHUNK)
    return io.BufferedReader(_Unix(source), CHUNK) if b"\r" in head and b"\n" not in head else source


class _Unix(io.RawIOBase):
    """A file whose lines end in CR alone (old Macs, Excel's "CSV (Macintosh)"), read with LF."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._source.read(len(buffer)).replace(b"\r", b"\n")
        buffer[: len(data)] = data
        return len(data)


class _Recoded(io.RawIOBase):
    """A file in another encoding, read as UTF-8."""

    def __init__(self, source: BinaryIO, encoding: str, name: str) -> None:
        self._source, self._name, self._encoding = source, name, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready, self._ended = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready and not self._ended:
            chunk = self._source.read(CHUNK)
            self._ended = not chunk
            try:
                self._ready = self._decoder.decode(chunk, final=self._ended).encode("utf-8")
            except UnicodeError:
                raise DataError(
                    f"{self._name}: begins as {self._encoding.upper()} text but is not",
                    hint="it may be cut short; save it again as UTF-8",
                ) from None
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


def _not_utf8(name: str, line: int) -> DataError:
    return DataError(
        f"{name}:{line}: not UTF-8 text",
        hint=f"convert it, for example: iconv -f GB18030 -t UTF-8 {PurePath(name).name}",
    )


def _nul(name: str, line: int) -> DataError:
    return DataError(
        f"{name}:{line}: holds NUL bytes, so it is no UTF-8 text",
        hint=f"if it is UTF-16 without a byte-order mark: iconv -f UTF-16LE -t UTF-8 {PurePath(name).name}",
    )
