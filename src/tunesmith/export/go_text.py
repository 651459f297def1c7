"""The part of Go's text/template that chat templates use, run in Python.

Ollama renders conversations with Go's text/template. To know before deployment what it will render, the same template
file is run here: no second, hand-written copy of a template exists. Implemented: text, actions, trim markers, comments,
pipelines, variables, ``if`` / ``else if`` / ``with`` / ``range`` (lists), ``break`` / ``continue``, fields, literals, and the
functions in `FUNCTIONS`. Everything else raises `GoTemplateError` when the template is read or run; nothing is guessed.
tests/test_go_template.py runs each shipped template through real Go as well. Reference: https://pkg.go.dev/text/template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.config.errors import ExportError


class GoTemplateError(ExportError):
    """A template that cannot be read, or uses what is not implemented, or fails on these data."""


class Struct(dict[str, Any]):
    """A Go struct: asking for a field it has not is an error, where a plain dict (a Go map) gives nothing."""


# --- the tree ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """One command of a pipeline: operands; the first may be a function."""

    operands: tuple[Operand, ...]


@dataclass(frozen=True)
class Pipe:
    """``$x, $y := a | b``: variables declared (or, with ``assign``, set), then commands from left to right."""

    commands: tuple[Command, ...]
    variables: tuple[str, ...] = ()
    assign: bool = False


@dataclass(frozen=True)
class Operand:
    """A literal, a function's name, ``.``, a ``$variable`` or a pipeline in parentheses; then a chain of fields."""

    kind: str  # "literal" | "function" | "dot" | "variable" | "pipe"
    value: Any = None
    fields: tuple[str, ...] = ()


@dataclass
class Node:
    """``text``, ``action``, ``if``, ``with``, ``range``, ``break`` or ``continue``."""

    kind: str
    text: str = ""
    pipe: Pipe | None = None
    body: list[Node] = field(default_factory=list)
    other: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class Template:
    """A template that was read. ``render(data)`` runs it; raises GoTemplateError."""

    nodes: tuple[Node, ...]

    def render(self, data: Mapping[str, Any]) -> str:
        """The text; ``data`` is the dot, a plain dict of strings, booleans, whole numbers, lists and `Struct`."""
        return _Run(data).text(self.nodes)


def read(source: str) -> Template:
    """Read a template. Raises GoTemplateError with the line number."""
    parser = _Parser(list(_pieces(source)))
    nodes, end, _ = parser.block(())
    assert end == ""
    return Template(tuple(nodes))


# --- cutting into text and actions --------------------------------------------------------------------------------

_SPACE = " \t\r\n"
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)|(?P<string>"(?:\\.|[^"\\\n])*")|(?P<raw>`[^`]*`)|(?P<number>[+-]?\d+(?![\w.]))"""
    r"""|(?P<variable>\$\w*)|(?P<field>\.[A-Za-z_]\w*)|(?P<dot>\.)|(?P<word>[A-Za-z_]\w*)|(?P<sign>:=|[=|(),])"""
)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    spaced: bool  # white space stands before it


def _pieces(source: str) -> Iterator[tuple[str | list[_Token], int]]:
    """Text and token lists by turns, each with its line; trim markers and comments are dealt with."""
    at, trim = 0, False
    while True:
        start = source.find("{{", at)
        text = source[at : start if start >= 0 else len(source)]
        if trim:
            text = text.lstrip(_SPACE)
        if start < 0:
            yield text, 0
            return
        line = source.count("\n", 0, start) + 1
        begin = start + 2
        if source[begin : begin + 1] == "-" and source[begin + 1 : begin + 2] in tuple(_SPACE):
            text = text.rstrip(_SPACE)
            begin += 2
        yield text, line
        if source.startswith("/*", begin):
            close = source.find("*/", begin + 2)
            found = re.compile(r"(\s-)?}}").match(source, close + 2)
            if close < 0 or found is None:
                raise GoTemplateError(f"line {line}: a comment that is not closed as '*/}}}}' or '*/ -}}}}'")
            at, trim = found.end(), found[1] is not None
            continue
        tokens, at, trim = _action(source, begin, line)
        yield tokens, line


def _action(source: str, at: int, line: int) -> tuple[list[_Token], int, bool]:
    """The tokens up to the closing braces, where they end, and whether the text after is trimmed."""
    tokens: list[_Token] = []
    spaced = False
    while True:
        if source.startswith("}}", at):
            return tokens, at + 2, False
        if spaced and source.startswith("-}}", at):
            return tokens, at + 3, True
        match = _TOKEN.match(source, at)
        if match is None:
            raise GoTemplateError(f"line {line}: {source[at : at + 12]!r} is not understood in an action")
        kind = str(match.lastgroup)
        if kind != "space":
            tokens.append(_Token(kind, match[0], spaced))
        spaced = kind == "space"
        at = match.end()


# --- reading -----------------------------------------------------------------------------------------------------


class _Parser:
    def __init__(self, pieces: list[tuple[str | list[_Token], int]]) -> None:
        self.pieces = pieces
        self.at = 0
        self.line = 0
        self.tokens: list[_Token] = []
        self.loops = 0

    def fail(self, message: str) -> GoTemplateError:
        return GoTemplateError(f"line {self.line}: {message}")

    def block(self, ends: Sequence[str]) -> tuple[list[Node], str, str]:
        """Nodes up to ``end`` or ``else``; that word, and the word after ``else`` (``if``, ``with`` or nothing)."""
        nodes: list[Node] = []
        while self.at < len(self.pieces):
            piece, self.line = self.pieces[self.at]
            self.at += 1
            if isinstance(piece, str):
                if piece:
                    nodes.append(Node("text", text=piece))
                continue
            self.tokens = list(piece)
            word = self.tokens[0].text if self.tokens and self.tokens[0].kind == "word" else ""
            if word in ("end", "else"):
                if word not in ends:
                    raise self.fail(f"unexpected {word!r}")
                self.tokens.pop(0)
                then = self.tokens.pop(0).text if word == "else" and self.tokens else ""
                return nodes, word, then
            if word in ("if", "with", "range"):
                self.tokens.pop(0)
                nodes.append(self.branch(word))
            elif word in ("break", "continue"):
                if not self.loops or len(self.tokens) > 1:
                    raise self.fail(f"unexpected {word!r}")
                nodes.append(Node(word))
            elif word in ("template", "define", "block"):
                raise self.fail(f"{word!r} is not implemented here")
            else:
                nodes.append(Node("action", pipe=self.pipe()))
        if ends:
            raise self.fail("a branch or loop has no end")
        return nodes, "", ""

    def branch(self, kind: str) -> Node:
        node = Node(kind, pipe=self.pipe(in_range=kind == "range"))
        self.loops += kind == "range"
        node.body, end, then = self.block(("end", "else"))
        self.loops -= kind == "range"
        if end == "else" and then:
            if then != "if" or kind == "range":
                raise self.fail(f"'else {then}' is not implemented here")
            node.other = [self.branch("if")]  # reads the common end
        elif end == "else":
            node.other, _, _ = self.block(("end",))
        return node

    def pipe(self, *, in_range: bool = False, close: bool = False) -> Pipe:
        variables, assign = self.declared(in_range)
        commands: list[Command] = []
        while True:
            operands: list[Operand] = []
            while self.tokens and self.tokens[0].text not in ("|", ")"):
                if operands and not self.tokens[0].spaced:
                    raise self.fail(f"unexpected {self.tokens[0].text!r}")
                operands.append(self.operand())
            if not operands:
                raise self.fail("an empty command")
            if len(operands) > 1 and operands[0].kind != "function":
                raise self.fail("arguments after something that is not a function")
            if commands and operands[0].kind != "function":
                raise self.fail("a later command of a pipeline must be a function")
            commands.append(Command(tuple(operands)))
            if not self.tokens or self.tokens[0].text == ")":
                break
            self.tokens.pop(0)
        if bool(self.tokens) != close:
            raise self.fail("parentheses that do not match")
        if close:
            self.tokens.pop(0)
        return Pipe(tuple(commands), variables, assign)

    def declared(self, in_range: bool) -> tuple[tuple[str, ...], bool]:
        texts = [token.text for token in self.tokens[:4]]
        if not self.tokens or self.tokens[0].kind != "variable":
            return (), False
        if texts[1:2] in ([":="], ["="]):
            del self.tokens[:2]
            return (texts[0],), texts[1] == "="
        if in_range and texts[1:2] == [","] and texts[3:4] in ([":="], ["="]):
            del self.tokens[:4]
            return (texts[0], texts[2]), texts[3] == "="
        return (), False

    def operand(self) -> Operand:
        token = self.tokens.pop(0)
        if token.kind == "string":
            try:
                return Operand("literal", json.loads(token.text))
            except ValueError as error:
                raise self.fail(f"the string {token.text} is not understood") from error
        if token.kind == "raw":
            return Operand("literal", token.text[1:-1].replace("\r", ""))
        if token.kind == "number":
            return Operand("literal", int(token.text))
        if token.kind == "word":
            if token.text in ("true", "false"):
                return Operand("literal", token.text == "true")
            if token.text not in FUNCTIONS and token.text not in ("and", "or"):
                raise self.fail(f"the function {token.text!r} is not implemented here")
            return Operand("function", token.text)
        if token.kind == "field":
            return Operand("dot", fields=(token.text[1:], *self.fields()))
        if token.kind == "dot":
            return Operand("dot")
        if token.kind == "variable":
            return Operand("variable", token.text, self.fields())
        if token.text == "(":
            return Operand("pipe", self.pipe(close=True), self.fields())
        raise self.fail(f"unexpected {token.text!r}")

    def fields(self) -> tuple[str, ...]:
        found = []
        while self.tokens and self.tokens[0].kind == "field" and not self.tokens[0].spaced:
            found.append(self.tokens.pop(0).text[1:])
        return tuple(found)


# --- running -----------------------------------------------------------------------------------------------------


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class _Run:
    """One run: the output so far, and the variables, innermost last."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.out: list[str] = []
        self.variables: list[tuple[str, Any]] = [("$", data)]

    def text(self, nodes: Sequence[Node]) -> str:
        self.nodes(nodes, self.variables[0][1])
        return "".join(self.out)

    def nodes(self, nodes: Sequence[Node], dot: Any) -> None:
        for node in nodes:
            if node.kind == "text":
                self.out.append(node.text)
            elif node.kind == "break":
                raise _Break
            elif node.kind == "continue":
                raise _Continue
            else:
                assert node.pipe is not None
                if node.kind == "action":
                    value = self.pipe(node.pipe, dot)
                    if not node.pipe.variables:
                        self.out.append(_printed(value))
                else:
                    mark = len(self.variables)
                    self.loop(node, dot) if node.kind == "range" else self.branch(node, dot)
                    del self.variables[mark:]

    def branch(self, node: Node, dot: Any) -> None:
        assert node.pipe is not None
        value = self.pipe(node.pipe, dot)
        if _true(value):
            self.nodes(node.body, value if node.kind == "with" else dot)
        else:
            self.nodes(node.other, dot)

    def loop(self, node: Node, dot: Any) -> None:
        assert node.pipe is not None
        names, assign = node.pipe.variables, node.pipe.assign
        items = self.pipe(Pipe(node.pipe.commands), dot)
        if items is None:
            items = []
        if not isinstance(items, (list, tuple)):
            raise GoTemplateError(f"range over {type(items).__name__} is not implemented here")
        if not items:
            self.nodes(node.other, dot)
            return
        mark = len(self.variables)
        for index, item in enumerate(items):
            for name, value in zip(names, [index, item] if len(names) == 2 else [item]):
                self.set(name, value) if assign else self.variables.append((name, value))
            try:
                self.nodes(node.body, item)
            except _Continue:
                pass
            except _Break:
                return
            finally:
                del self.variables[mark:]

    def set(self, name: str, value: Any) -> None:
        for at in range(len(self.variables) - 1, -1, -1):
            if self.variables[at][0] == name:
                self.variables[at] = (name, value)
                return
        raise GoTemplateError(f"undefined variable {name}")

    def pipe(self, pipe: Pipe, dot: Any) -> Any:
        value: Any = None
        for at, command in enumerate(pipe.commands):
            value = self.command(command, dot, [value] if at else [])
        for name in pipe.variables:
            self.set(name, value) if pipe.assign else self.variables.append((name, value))
        return value

    def command(self, command: Command, dot: Any, last: list[Any]) -> Any:
        first, *rest = command.operands
        if first.kind != "function":
            return self.operand(first, dot)
        if first.value in ("and", "or"):
            value: Any = None
            thunks: list[Callable[[], Any]] = [lambda o=o: self.operand(o, dot) for o in rest]  # type: ignore[misc]
            for thunk in [*thunks, *(lambda v=v: v for v in last)]:
                value = thunk()
                if _true(value) == (first.value == "or"):
                    break
            return value
        return FUNCTIONS[first.value](*[self.operand(o, dot) for o in rest], *last)

    def operand(self, operand: Operand, dot: Any) -> Any:
        if operand.kind == "literal":
            return operand.value
        if operand.kind == "function":
            return self.command(Command((operand,)), dot, [])
        value = dot
        if operand.kind == "pipe":
            value = self.pipe(operand.value, dot)
        elif operand.kind == "variable":
            found = [value for name, value in self.variables if name == operand.value]
            if not found:
                raise GoTemplateError(f"undefined variable {operand.value}")
            value = found[-1]
        for name in operand.fields:
            value = _field(value, name)
        return value


def _field(value: Any, name: str) -> Any:
    if isinstance(value, Struct):
        if name not in value:
            raise GoTemplateError(f"a message has no field {name!r}")
        return value[name]
    if isinstance(value, Mapping):
        return value.get(name)
    raise GoTemplateError(f"no field {name!r} in {_printed(value)!r}")


def _true(value: Any) -> bool:
    """Go's truth: false, 0, the empty string, list and map, and nothing are false; a struct is always true."""
    return True if isinstance(value, Struct) else bool(value)


def _printed(value: Any) -> str:
    """As Go prints it with ``%v``."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int)):
        return str(value)
    raise GoTemplateError(f"printing a {type(value).__name__} is not implemented here")


def _text_or_list(value: Any) -> Any:
    """Go counts and cuts strings in bytes."""
    if isinstance(value, str):
        return value.encode("utf-8")
    if isinstance(value, (list, tuple, Mapping)) and not isinstance(value, Struct):
        return value
    raise GoTemplateError(f"no length or elements in {_printed(value)!r}")


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping) and not isinstance(value, Struct):
            value = value.get(key)
            continue
        items = _text_or_list(value)
        if isinstance(key, bool) or not isinstance(key, int) or not 0 <= key < len(items):
            raise GoTemplateError(f"index out of range: {key}")
        value = items[key]
    return value


def _slice(value: Any, low: int = 0, high: int | None = None) -> Any:
    items = _text_or_list(value)
    high = len(items) if high is None else high
    if not 0 <= low <= high <= len(items):
        raise GoTemplateError(f"slice out of range: {low}:{high}")
    cut = items[low:high]
    return cut.decode("utf-8", "replace") if isinstance(cut, bytes) else cut


def _eq(first: Any, *others: Any) -> bool:
    if not others:
        raise GoTemplateError("eq needs two values")
    for other in others:
        if type(first) is not type(other):
            raise GoTemplateError(f"eq of {_printed(first)!r} and {_printed(other)!r}: different types")
    return first in others


def _less(first: Any, second: Any) -> bool:
    if type(first) is not type(second) or not isinstance(first, (int, str)) or isinstance(first, bool):
        raise GoTemplateError(f"{_printed(first)!r} and {_printed(second)!r} have no order")
    return first < second


def _printf(form: str, *values: Any) -> str:
    left = list(values)

    def one(match: re.Match[str]) -> str:
        verb = match[0][1:]
        if verb == "%":
            return "%"
        if not left:
            raise GoTemplateError(f"printf {form!r} has too few values")
        value = left.pop(0)
        fits = {"s": isinstance(value, str), "d": type(value) is int, "v": value is not None}
        if not fits.get(verb):
            raise GoTemplateError(f"printf {match[0]!r} of {_printed(value)!r} is not implemented here")
        return _printed(value)

    text = re.sub(r"%.?", one, form, flags=re.DOTALL)
    if left:
        raise GoTemplateError(f"printf {form!r} has too many values")
    return text


def _print(*values: Any) -> str:
    """Go's ``Sprint``: a space between two values when neither is a string."""
    text = ""
    for at, value in enumerate(values):
        space = at > 0 and not isinstance(value, str) and not isinstance(values[at - 1], str)
        text += (" " if space else "") + _printed(value)
    return text


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": _eq,
    "ge": lambda a, b: not _less(a, b),
    "gt": lambda a, b: _less(b, a),
    "index": _index,
    "le": lambda a, b: not _less(b, a),
    "len": lambda value: len(_text_or_list(value)),
    "lt": _less,
    "ne": lambda a, b: not _eq(a, b),
    "not": lambda value: not _true(value),
    "print": _print,
    "printf": _printf,
    "slice": _slice,
}
"""Beside these, ``and`` and ``or`` (which stop at the first value that decides)."""
