"""Comma- and tab-separated text with a line of column names. Every value is text."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import BinaryIO

from tunesmith.config.errors import DataError
from tunesmith.data.decode import lines
from tunesmith.data.files.base import ROW_LIMIT, Options, Rows

SUFFIXES = (".csv", ".tsv")
SEEKS = False


def rows(file: BinaryIO, name: str, options: Options) -> Rows:
    """``origin`` is ``name:line``, the line on which the record begins.

    The separator is the one of comma, tab and semicolon that stands most often in the first line.
    """
    csv.field_size_limit(ROW_LIMIT)
    numbered = lines(file, name)
    first = next(numbered, None)
    if first is None:
        raise DataError(f"{name}: the file is empty")
    separator = max((",", "\t", ";"), key=first[1].count)

    def texts() -> Iterator[str]:
        yield first[1]
        yield from (text for _, text in numbered)

    reader = csv.reader(texts(), delimiter=separator, strict=True)
    header: list[str] = []
    line = 1
    try:
        header = _header(next(reader), name)
        line = reader.line_num + 1
        for record in reader:
            origin, line = f"{name}:{line}", reader.line_num + 1
            if not record:
                continue
            if len(record) != len(header):
                yield (
                    origin,
                    DataError(
                        f"{origin}: {len(record)} values for {len(header)} columns ({', '.join(map(repr, header))})",
                        hint='a value that holds the separator or a line break stands in quotes: "…"',
                    ),
                )
            else:
                yield origin, dict(zip(header, record, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{name}:{line}: not valid CSV: {error}",
            hint='look at the quotes from there on: a quote inside a quoted value is written twice, "like ""this"""',
        ) from None


def _header(names: list[str], name: str) -> list[str]:
    """The column names; a nameless one (an index that pandas wrote) is called by its number."""
    header = [text.strip() or f"column {i}" for i, text in enumerate(names, 1)]
    twice = next((text for i, text in enumerate(header) if text in header[:i]), None)
    if twice is not None:
        raise DataError(f"{name}:1: the column {twice!r} stands twice", hint="give every column its own name")
    return header
