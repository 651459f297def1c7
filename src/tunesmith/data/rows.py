"""The rows of one file: unpacked, its kind told by suffix and content, handed to the reader of that kind."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.config.errors import DataError
from tunesmith.config.plugins import load as load_plugin
from tunesmith.config.plugins import names
from tunesmith.data.compressed import packing, unpacked
from tunesmith.data.decode import marked
from tunesmith.data.files.base import Options, Rows
from tunesmith.data.part import Part, file_part, unzipped
from tunesmith.data.strict_json import decode

FILES = "tunesmith.data.files"
HEAD = 1 << 20
JSON_KINDS = ("json", "jsonl")
OTHER = {
    b"\x89HDF": ("an HDF5 file", "write it as Parquet"),
    b"SQLite format 3": ("an SQLite database", "export the table as CSV or JSON Lines"),
    b"%PDF": ("a PDF document", "save its text as .txt"),
    b"\xd0\xcf\x11\xe0": ("an old Office document", "save the table as CSV (UTF-8)"),
    b"\x80\x04": ("a Python pickle, which can run code when it is opened", "write it as Parquet or JSON Lines"),
    b"7z\xbc\xaf": ("a 7z archive", "unpack it"),
    b"Rar!": ("a RAR archive", "unpack it"),
    b"version https://git-lfs": ("a pointer of Git LFS, not the file itself", "fetch the file: git lfs pull"),
    b"<!DOCTYPE html": (
        "a web page, not a data file",
        "download the file itself (the raw file, not the page that shows it)",
    ),
    b"<html": ("a web page, not a data file", "download the file itself (the raw file, not the page that shows it)"),
}
Note = Callable[[str], None]


def kinds() -> dict[str, str]:
    """suffix -> reader, of every reader there is."""
    return {suffix: name for name in names(FILES) for suffix in load_plugin(FILES, name).SUFFIXES}


def read_rows(path: Path, options: Options = Options(), note: Note = lambda line: None) -> Rows:  # noqa: B008 - frozen
    """``(origin, row)`` of every row of a file of this disk; as ``read_part``."""
    for part in unzipped(file_part(path)):
        yield from read_part(part, options, note)


def read_part(part: Part, options: Options, note: Note = lambda line: None) -> Rows:
    """``(origin, row)`` of every row; a DataError in place of a row that cannot be read. ``note`` is told when the content
    is of another kind than the name says. Raises DataError when the file as a whole cannot be read."""
    with _plain(part) as file:
        head = file.read(HEAD)
    kind = _kind(part, head, note)
    reader = load_plugin(FILES, kind)
    if reader.SEEKS and (part.packed or packing(part.head(8))):
        raise DataError(f"{part.name}: a packed {kind} file cannot be read in place", hint="unpack it")
    with _plain(part) as file:
        yield from reader.rows(file, part.name, options)


def _plain(part: Part) -> BinaryIO:
    """The content, unpacked when it is gzip, bzip2, xz or zstd."""
    file = part.open()
    file = file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)  # type: ignore[type-var]
    how = packing(file.peek(8)[:8])
    if how is None:
        return file
    if how == "zip" or part.packed:
        raise DataError(f"{part.name}: an archive inside an archive is not opened", hint="unpack it once yourself")
    return unpacked(file, how, part.name, part.size)


def _kind(part: Part, head: bytes, note: Note) -> str:
    """Which reader: what the content is beyond doubt, else what the suffix says."""
    if not head:
        raise DataError(
            f"{part.name}: the file is empty", hint="was it written to its end? it should hold at least one row"
        )
    for mark, (what, mend) in OTHER.items():
        if head.startswith((mark, mark.lower())):
            raise DataError(f"{part.name}: is {what}", hint=mend)
    known = kinds()
    named = known.get(part.suffix)
    told = _told(head, named)
    if told is None and named is None:
        raise DataError(
            f"{part.name}: the file type {part.suffix or 'without a suffix'} is not read",
            hint=f"supported: {', '.join(sorted(known))}, and these packed as .gz .bz2 .xz .zst .zip",
        )
    kind = told or named
    assert kind is not None
    if named is not None and kind != named:
        note(f"{part.name}: is read as {kind}, which it is in spite of its name")
    if kind not in ("parquet", "arrow"):
        length, encoding = marked(head)
        if not head[length:].decode(encoding, "ignore").strip() and len(head) < HEAD:
            raise DataError(
                f"{part.name}: the file is empty", hint="was it written to its end? it should hold at least one row"
            )
    return kind


def _told(head: bytes, named: str | None) -> str | None:
    """The kind that the content shows, or None."""
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")) and named in (None, "arrow", "parquet"):
        return "arrow"
    if named in ("parquet", "arrow"):
        return named
    length, encoding = marked(head)
    text = head[length:].decode(encoding, "ignore").lstrip(" \t\r\n")
    first, line_end, rest = text.partition("\n")
    if text.startswith("{"):
        whole = _is_object(first) if line_end or len(head) < HEAD else False
        if named not in JSON_KINDS:  # a table or a text that begins with a brace is rarely JSON: be sure
            return "jsonl" if whole else None
        if whole:
            return "jsonl" if rest.strip() or named == "jsonl" else "json"
        return "json" if named == "json" or first.strip() == "{" else "jsonl"
    if text.startswith("["):
        if named == "json" or (named == "jsonl" and not _is_value(first)):
            return "json"
        if named == "jsonl":
            return "jsonl" if rest.strip() else "json"
        return "json" if named is None or text[1:].lstrip().startswith("{") else None
    return None


def _is_object(line: str) -> bool:
    return line.rstrip().endswith("}") and _is_value(line)


def _is_value(line: str) -> bool:
    try:
        decode(line)
    except (ValueError, RecursionError):
        return False
    return True


def first_rows(rows: Iterator[tuple[str, Any]], count: int) -> list[tuple[str, Any]]:
    """At most ``count`` rows from the beginning."""
    found = []
    for item in rows:
        found.append(item)
        if len(found) == count:
            break
    return found
