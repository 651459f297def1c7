"""Reading Go's text/template into a tree: the part of the language described in `go_text`. It runs nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.config.errors import ExportError


class GoTemplateError(ExportError):
    """A template that cannot be read, or uses what is not implemented, or fails on these data."""


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
    """``text``, ``action``, ``if``, ``with``, ``range``, ``break``, ``continue``, ``template`` or ``define`` (``text``: the name)."""

    kind: str
    text: str = ""
    pipe: Pipe | None = None
    body: list[Node] = field(default_factory=list)
    other: list[Node] = field(default_factory=list)


def parse(source: str, functions: Container[str]) -> list[Node]:
    """The tree of a template that may use ``functions``. Raises GoTemplateError with the line number."""
    nodes, _, _ = _Parser(list(_pieces(source)), functions).block(())
    return nodes


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
    def __init__(self, pieces: list[tuple[str | list[_Token], int]], functions: Container[str]) -> None:
        self.pieces = pieces
        self.functions = functions
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
            elif word in ("template", "define"):
                self.tokens.pop(0)
                nodes.append(self.named(word, top=not ends))
            elif word == "block":
                raise self.fail(f"{word!r} is not implemented here")
            else:
                nodes.append(Node("action", pipe=self.pipe()))
        if ends:
            raise self.fail("a branch or loop has no end")
        return nodes, "", ""

    def named(self, kind: str, *, top: bool) -> Node:
        """``define "name"`` with its body, or ``template "name" pipeline``."""
        if not self.tokens or self.tokens[0].kind not in ("string", "raw"):
            raise self.fail(f"{kind!r} without a name")
        name = self.operand().value
        if kind == "template":
            if not self.tokens:
                raise self.fail("'template' without a pipeline is not implemented here")
            return Node("template", text=name, pipe=self.pipe())
        if self.tokens or not top:
            raise self.fail("unexpected 'define'")
        loops, self.loops = self.loops, 0
        body, _, _ = self.block(("end",))
        self.loops = loops
        return Node("define", text=name, body=body)

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
            if token.text not in self.functions:
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
