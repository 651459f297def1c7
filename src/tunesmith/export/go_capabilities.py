"""What Ollama reads off a template: the capabilities it claims for the model, the tags around thinking, what begins a tool call.

Source: ``Vars`` in Ollama's ``template/template.go``, ``thinking/template.go``, ``tools/template.go`` and ``server/images.go``, as of 0.24.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from tunesmith.export.go_text import Template, read
from tunesmith.export.go_text_tree import Node, Operand, Pipe


@cache
def capabilities(text: str) -> tuple[str, ...]:
    """``completion``, and of ``tools``, ``insert`` and ``thinking`` those that Ollama finds in the template. Raises GoTemplateError."""
    template = read(text)
    names = variables(template)
    found = ["completion"]
    found += [what for what, name in (("tools", "tools"), ("insert", "suffix")) if name in names]
    return (*found, "thinking") if all(thinking_tags(template)) else tuple(found)


def variables(template: Template) -> set[str]:
    """Names of fields and variables that the template uses, in lower case."""
    found: set[str] = set()
    for body in (template.nodes, *(part.body for part in template.defined.values())):
        for node in _all(body):
            for operand in _operands(node.pipe):
                fields = operand.fields if operand.kind in ("dot", "variable") else ()
                found |= {name.lower() for name in fields}
    return found


def thinking_tags(template: Template) -> tuple[str, str]:
    """The texts that begin and end thinking: around the last use of ``.Thinking`` in a loop over ``.Messages``."""
    tags = ["", ""]
    _find_tags(template.nodes, None, tags)
    return tags[0], tags[1]


def call_tag(template: Template) -> str:
    """The text at which Ollama begins to look for a tool call: the first one inside the first ``{{ if .ToolCalls }}``."""
    for node in _all(template.nodes):
        if node.kind == "if" and node.pipe is not None:
            fields = [o.fields for c in node.pipe.commands for o in c.operands if o.kind == "dot"]
            if any("ToolCalls" in names for names in fields):
                return _first_text(node.body).strip().split("{")[0]
    return ""


def _first_text(nodes: Sequence[Node]) -> str:
    for node in nodes:
        if node.kind == "text":
            return node.text
        if node.kind != "template":
            return _first_text(node.body) or _first_text(node.other)
    return ""


def _find_tags(nodes: Sequence[Node], loop: Node | None, tags: list[str]) -> None:
    for node in nodes:
        inner = node if node.kind == "range" else loop
        over_messages = inner is not None and any(
            o.kind == "dot" and o.fields[:1] == ("Messages",) for o in _operands(inner.pipe)
        )
        uses = any(o.kind == "dot" and o.fields[:1] == ("Thinking",) for o in _operands(node.pipe))
        if uses and over_messages:
            if nodes[0].kind == "text":
                tags[0] = nodes[0].text.strip()
            if nodes[-1].kind == "text":
                tags[1] = nodes[-1].text.strip()
        _find_tags(node.body, inner, tags)
        _find_tags(node.other, inner, tags)


def _all(nodes: Sequence[Node]) -> Iterator[Node]:
    for node in nodes:
        yield node
        yield from _all(node.body)
        yield from _all(node.other)


def _operands(pipe: Pipe | None) -> Iterator[Operand]:
    """Operands of a pipeline, those in parentheses included (but not what is taken of a field of parentheses, as in Ollama)."""
    for command in pipe.commands if pipe is not None else ():
        for operand in command.operands:
            yield operand
            if operand.kind == "pipe" and not operand.fields:
                yield from _operands(operand.value)
