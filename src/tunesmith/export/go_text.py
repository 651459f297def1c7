"""The part of Go's text/template that chat templates use, run in Python.

Ollama renders conversations with Go's text/template. To know before deployment what it will render, the same template
file is run here: no second, hand-written copy of a template exists. Implemented: text, actions, trim markers, comments,
pipelines, variables, ``if`` / ``else if`` / ``with`` / ``range`` (lists and maps), ``break`` / ``continue``, ``define`` / ``template``,
fields, literals, and the functions in `FUNCTIONS`. Everything else raises `GoTemplateError` when the template is read or run; nothing is guessed.
tests/test_go_text.py runs each shipped template through real Go as well. Reference: https://pkg.go.dev/text/template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.export.go_text_tree import Command, GoTemplateError, Node, Operand, Pipe, parse
from tunesmith.export.go_text_values import Struct, as_json, printed, quoted, true, type_name

__all__ = ["FUNCTIONS", "GoTemplateError", "Struct", "Template", "read"]


@dataclass(frozen=True)
class Template:
    """A template that was read. ``render(data)`` runs it; raises GoTemplateError. ``defined``: its named parts."""

    nodes: tuple[Node, ...]
    defined: Mapping[str, Node]

    def render(self, data: Mapping[str, Any]) -> str:
        """The text; ``data`` is the dot, a plain dict of values as `go_text_values` describes them."""
        return _Run(data, self.defined).text(self.nodes)


def read(source: str) -> Template:
    """Read a template. Raises GoTemplateError with the line number."""
    nodes = parse(source, {*FUNCTIONS, "and", "or"})
    parts = {node.text: node for node in nodes if node.kind == "define"}
    return Template(tuple(node for node in nodes if node.kind != "define"), parts)


# --- running -----------------------------------------------------------------------------------------------------


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class _Run:
    """One run: the output so far, and the variables, innermost last."""

    def __init__(self, data: Any, defined: Mapping[str, Node]) -> None:
        self.defined = defined
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
                        self.out.append(printed(value))
                elif node.kind == "template":
                    self.part(node.text, self.pipe(node.pipe, dot))
                else:
                    mark = len(self.variables)
                    self.loop(node, dot) if node.kind == "range" else self.branch(node, dot)
                    del self.variables[mark:]

    def part(self, name: str, dot: Any) -> None:
        """``{{ template "name" pipeline }}``: the part sees no variable of ours, and its ``$`` is the pipeline's value."""
        if name not in self.defined:
            raise GoTemplateError(f"there is no template {name!r}")
        run = _Run(dot, self.defined)
        run.out = self.out
        run.nodes(self.defined[name].body, dot)

    def branch(self, node: Node, dot: Any) -> None:
        assert node.pipe is not None
        value = self.pipe(node.pipe, dot)
        if true(value):
            self.nodes(node.body, value if node.kind == "with" else dot)
        else:
            self.nodes(node.other, dot)

    def loop(self, node: Node, dot: Any) -> None:
        assert node.pipe is not None
        names, assign = node.pipe.variables, node.pipe.assign
        items = self.pipe(Pipe(node.pipe.commands), dot)
        if items is None:
            items = []
        if isinstance(items, Mapping) and not isinstance(items, Struct):
            pairs = sorted(items.items())
        elif isinstance(items, (list, tuple)):
            pairs = list(enumerate(items))
        else:
            raise GoTemplateError(f"range over {type_name(items)} is not implemented here")
        if not items:
            self.nodes(node.other, dot)
            return
        mark = len(self.variables)
        for index, item in pairs:
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
                if true(value) == (first.value == "or"):
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
            raise GoTemplateError(f"a {value.TYPE} has no field {name!r}")
        return value[name]
    if isinstance(value, Mapping):
        return value.get(name)
    raise GoTemplateError(f"no field {name!r} in a {type_name(value)}")


def _text_or_list(value: Any) -> Any:
    """Go counts and cuts strings in bytes."""
    if isinstance(value, str):
        return value.encode("utf-8")
    if isinstance(value, (list, tuple, Mapping)) and not isinstance(value, Struct):
        return value
    raise GoTemplateError(f"no length or elements in a {type_name(value)}")


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
            raise GoTemplateError(f"eq of a {type_name(first)} and a {type_name(other)}: different types")
    return first in others


def _less(first: Any, second: Any) -> bool:
    if type(first) is not type(second) or not isinstance(first, (int, str)) or isinstance(first, bool):
        raise GoTemplateError(f"a {type_name(first)} and a {type_name(second)} have no order")
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
        if verb == "T":
            return type_name(value)
        fits = {
            "s": isinstance(value, str),
            "q": isinstance(value, str),
            "d": type(value) is int,
            "v": value is not None,
        }
        if not fits.get(verb):
            raise GoTemplateError(f"printf {match[0]!r} of a {type_name(value)} is not implemented here")
        return quoted(value) if verb == "q" else printed(value)

    text = re.sub(r"%.?", one, form, flags=re.DOTALL)
    if left:
        raise GoTemplateError(f"printf {form!r} has too many values")
    return text


def _print(*values: Any) -> str:
    """Go's ``Sprint``: a space between two values when neither is a string."""
    text = ""
    for at, value in enumerate(values):
        space = at > 0 and not isinstance(value, str) and not isinstance(values[at - 1], str)
        text += (" " if space else "") + printed(value)
    return text


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": _eq,
    "ge": lambda a, b: not _less(a, b),
    "gt": lambda a, b: _less(b, a),
    "index": _index,
    "json": as_json,
    "le": lambda a, b: not _less(b, a),
    "len": lambda value: len(_text_or_list(value)),
    "lt": _less,
    "ne": lambda a, b: not _eq(a, b),
    "not": lambda value: not true(value),
    "print": _print,
    "printf": _printf,
    "slice": _slice,
}
"""Beside these, ``and`` and ``or`` (which stop at the first value that decides). ``json`` is Ollama's."""
