"""A JSON list of rows, read one row at a time; also a list inside one object (``{"data": [{…}, …]}``)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from json import JSONDecodeError
from typing import Any, BinaryIO

from tunesmith.config.errors import DataError
from tunesmith.data.decode import chunks
from tunesmith.data.files.base import ROW_LIMIT, Options, Rows, too_long
from tunesmith.data.strict_json import TOO_DEEP, Flaw, decode_at

SUFFIXES = (".json",)
SEEKS = False
CONTAINERS = ("data", "rows", "train", "examples", "instances", "records", "items")
"""Keys of an object that are taken for its list of rows when none is named (``field``)."""
SPACE = " \t\r\n"
NO_SPACE = re.compile(r"[^ \t\r\n]")
EDGE = 64
"""An error this near to the end of what was read so far (characters) may only mean that the rest is missing."""


def rows(file: BinaryIO, name: str, options: Options) -> Rows:
    """``origin`` is ``name:row N``, counted from 1."""
    text = _Text(chunks(file, name), name)
    first = text.next()
    if first == "[":
        if options.field is not None:
            raise DataError(f"{name}: is a list, so it has no key {options.field!r}", hint="leave `field` out")
        yield from _list(text)
    elif first == "{":
        yield from _object(text, options.field)
    elif not first:
        raise DataError(f"{name}: the file is empty", hint="was it written to its end? it should hold at least one row")
    else:
        text.value()  # says what is wrong with it
        raise DataError(
            f"{name}: expected a list of rows, found one value: {text.excerpt()}", hint="write rows as [{…}, {…}]"
        )
    if text.next():
        raise DataError(
            f"{name}:{text.line()}: more stands after the end of the data: {text.excerpt()}",
            hint="a .json file is one list; several objects one after the other are JSON Lines, one per line (.jsonl)",
        )


def _list(text: _Text) -> Rows:
    for number, value in enumerate(_items(text), 1):
        origin = f"{text.name}:row {number}"
        yield origin, DataError(f"{origin}: {value}", hint=value.mend) if isinstance(value, Flaw) else value


def _object(text: _Text, field: str | None) -> Rows:
    text.skip("{")
    found: list[str] = []
    keys: list[str] = []
    wanted = (field,) if field is not None else CONTAINERS
    while text.next() != "}":
        key = text.value() if text.next() == '"' else text.fail("expected a key in quotes")
        keys.append(str(key))
        if text.next() != ":":
            text.fail("expected ':' after a key")
        text.skip(":")
        if key in wanted and text.next() == "[":
            if found:
                raise DataError(
                    f"{text.name}: has several lists, {found[0]!r} and {key!r}",
                    hint=f"say which one with `field`, for example {{set: {text.name}, field: {found[0]}}}",
                )
            found.append(str(key))
            yield from _list(text)
        else:
            text.value()
        if text.next() == ",":
            text.skip(",")
            if text.next() == "}":
                text.fail("a comma before the closing brace")
        elif text.next() != "}":
            text.fail("expected ',' or '}'")
    text.skip("}")
    if not found:
        there = ", ".join(map(repr, keys[:12])) or "nothing"
        raise DataError(
            f"{text.name}: expected a list of rows [{{…}}, {{…}}], found one object with {there}",
            hint="put [ ] around it" if field is None else f"it has no list under {field!r}",
        )


def _items(text: _Text) -> Iterator[Any]:
    text.skip("[")
    if text.next() == "]":
        text.skip("]")
        return
    while True:
        yield text.value()
        if text.next() == "]":
            text.skip("]")
            return
        if text.next() != ",":
            text.fail("expected ',' or ']' after a row")
        text.skip(",")
        if text.next() == "]":
            text.fail("a comma after the last row")


class _Text:
    """The text of a file as a window that moves forward."""

    def __init__(self, source: Iterator[str], name: str) -> None:
        self.name = name
        self._source = source
        self._text, self._at, self._lines_before = "", 0, 1
        self._ended = False

    def next(self) -> str:
        """The next character that is no space; empty at the end."""
        while (found := NO_SPACE.search(self._text, self._at)) is None:
            self._at = len(self._text)
            if not self._more():
                return ""
        self._at = found.start()
        return found[0]

    def skip(self, character: str) -> None:
        assert self.next() == character
        self._at += 1

    def value(self) -> Any:
        """The JSON value here, or a Flaw. Raises DataError with the line when it is none."""
        if not self.next():
            self.fail("the file ends in the middle")
        while True:
            try:
                value, end = decode_at(self._text, self._at)
                if end < len(self._text) or not self._more():
                    self._at = end
                    return value
            except RecursionError:
                raise DataError(f"{self.name}: nested too deeply to be a data set", hint=TOO_DEEP) from None
            except JSONDecodeError as error:
                may_go_on = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - EDGE
                if not may_go_on or not self._more():
                    self.fail(error.msg, error.pos)

    def fail(self, what: str, at: int | None = None) -> Any:
        """Raise DataError with the line."""
        at = self._at if at is None else at
        if self._ended and not self._text[at:].strip(SPACE):
            what = f"the file ends in the middle ({what})"
        raise DataError(
            f"{self.name}:{self.line(at)}: not valid JSON: {what}: {self.excerpt(at)}",
            hint="names and texts stand in double quotes in JSON; Python writes it with json.dumps(rows)"
            if "double quotes" in what and "'" in self.excerpt(at)
            else "check for a missing or trailing comma or an open quote there",
        )

    def line(self, at: int | None = None) -> int:
        return self._lines_before + self._text.count("\n", 0, self._at if at is None else at)

    def excerpt(self, at: int | None = None) -> str:
        at = self._at if at is None else at
        return repr(self._text[max(0, at - 20) : at + 30])

    def _more(self) -> bool:
        """Read on: as much again as there is, so that a long row is not tried again too often."""
        wanted = max(1, len(self._text) - self._at)
        if wanted > ROW_LIMIT:
            raise too_long(f"{self.name}:{self.line()}")
        pieces, got = [], 0
        while got < wanted and not self._ended:
            piece = next(self._source, None)
            if piece is None:
                self._ended = True
            else:
                pieces.append(piece)
                got += len(piece)
        if not pieces:
            return False
        self._lines_before += self._text.count("\n", 0, self._at)
        self._text = self._text[self._at :] + "".join(pieces)
        self._at = 0
        return True
