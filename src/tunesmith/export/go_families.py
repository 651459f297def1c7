"""The template files: ``go_templates/<family>.gotmpl``, and how what a model has of its own is filled in.

A file's first line is a comment holding JSON: ``stop``, the family's stop strings, and ``uses``, names of files with parts that it
needs (``_<name>.gotmpl``: JSON spaced as Python spaces it). Assignments that may be filled in from the model's own template:

* ``$default``: the system prompt it puts in when there is none; ``$before``: what it puts in front of every system prompt
  (Llama 3.1's dates); ``$begin``: what every text begins with; ``$eos``: what ends an answer;
* ``$opening``: what its prompts add after the beginning of an answer (``<think>``); ``$on`` and ``$off``: the same when the
  request says to think, or not to;
* ``$sample``: the tool call that it shows as a sample.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tunesmith.config.errors import ExportError
from tunesmith.export import go_text
from tunesmith.export.go_probes import MARK, PROBE, Probe
from tunesmith.export.go_values import Messages, Tools, values

FOLDER = Path(__file__).parent / "go_templates"
_HEAD = re.compile(r"\{\{- /\* (\{.*?\}) \*/ -\}\}\n")


@cache
def families() -> tuple[str, ...]:
    """Names of the families, in order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.gotmpl") if not path.name.startswith("_")))


@cache
def source(family: str) -> str:
    """A family's template, without its first line, with the parts it uses in front."""
    head, body = _file(family)
    return "".join(_text(f"_{part}") for part in json.loads(head).get("uses", ())) + body


@cache
def stops(family: str) -> tuple[str, ...]:
    """The strings at which an answer of this family must end."""
    return tuple(dict.fromkeys(json.loads(_file(family)[0])["stop"]))


def _text(name: str) -> str:
    return (FOLDER / f"{name}.gotmpl").read_bytes().decode("utf-8").replace("\r\n", "\n")


def _file(family: str) -> tuple[str, str]:
    text = _text(family)
    head = _HEAD.match(text)
    assert head is not None, f"{family}.gotmpl does not begin with its comment"
    return head[1], text[head.end() :]


@cache
def _read(text: str) -> go_text.Template:
    return go_text.read(text)


def render_as_ollama(text: str, messages: Messages, tools: Tools = (), think: bool | None = None) -> str:
    """What Ollama gives the model for this conversation (the tokenizer's own beginning token is not in it).

    Raises GoTemplateError when the template cannot be run. Source: ``Template.Execute`` in Ollama's ``template/template.go``,
    for templates that use ``.Messages``.
    """
    return _read(text).render(values(messages, tools, think))


def own(text: str, probe: Probe) -> str:
    """The probe by a template of ours, which must run."""
    try:
        return render_as_ollama(text, probe.messages, probe.tools, probe.think)
    except ExportError as error:
        raise AssertionError(f"a shipped template fails for “{probe.name}”: {error}") from error


def assigned(text: str, name: str) -> str:
    """What ``$name`` is in a template, "" when nothing."""
    found = re.search(rf'\${name} := ("(?:\\.|[^"\\])*")', text)
    return str(json.loads(found[1])) if found else ""


def filled(text: str, wanted: Mapping[str, str | None]) -> str:
    """The family's text with its assignments filled in as the model has them, where it has them."""
    system = wanted["marked system"]
    if '$opening := ""' in text and system is not None:
        ours = own(text, PROBE["marked system"])
        tail = ours[ours.rindex(MARK) + len(MARK) :] if MARK in ours else ours
        _, found, opening = system.rpartition(tail)
        text = _assign(text, "opening", opening) if found and tail else text
    for name, probe in FILLED.items():
        theirs = wanted.get(probe)
        if f'${name} := ""' not in text or theirs is None:
            continue
        head, found, tail = own(_assign(text, name, _HERE), PROBE[probe]).partition(_HERE)
        if found and len(theirs) > len(head) + len(tail) and theirs.startswith(head) and theirs.endswith(tail):
            text = _assign(text, name, theirs[len(head) : len(theirs) - len(tail)])
    return text


FILLED = {
    "begin": "marked system",
    "before": "marked system",
    "eos": "system and three turns",
    "default": "user",
    "sample": "a tool",
    "on": "a question, told to think",
    "off": "a question, told not to think",
}
"""Assignments and the probes in which what belongs there is found: what the model has there and the family does not."""
_HERE = "qqHEREqq"


def _assign(text: str, name: str, value: str) -> str:
    return text.replace(f'${name} := ""', f"${name} := {json.dumps(value, ensure_ascii=False)}", 1)
