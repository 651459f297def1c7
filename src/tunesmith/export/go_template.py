"""Choose the Ollama TEMPLATE of a model by comparing what it renders, never by the model's name.

``go_templates/<family>.gotmpl`` is what Ollama runs. Its first line is a comment holding JSON: the family's stop strings.
Two assignments in a file may be filled in from the model's own template: ``$default``, the system prompt it puts in when
the conversation has none, and ``$before``, what it puts in front of every system prompt (Llama 3.1's dates).

A family fits when it gives the same text as the model's own template for every required probe conversation. Ollama itself
cannot do some things that Jinja templates do, whatever the template (it has no function that trims white space, and it
merges neighbouring messages of one role): such differences are told as `GoTemplate.limits`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError
from tunesmith.export import go_text

FOLDER = Path(__file__).parent / "go_templates"

Messages = Sequence[Mapping[str, str]]
Render = Callable[[list[dict[str, str]], bool], str]
"""The model's own template: (messages, add_generation_prompt) -> text. It may raise for a conversation it refuses."""


@dataclass(frozen=True)
class GoTemplate:
    """A template that Ollama can run and that was found to say what the model's own says.

    ``text`` goes into the Modelfile, ``stop`` into its parameters. ``compared`` conversations were equal. ``limits`` are
    sentences for the report: where Ollama will differ in spite of that.
    """

    family: str
    text: str
    stop: tuple[str, ...]
    default_system: str
    compared: int
    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """``template``, or None when no family fits; ``reason`` is one sentence either way."""

    template: GoTemplate | None
    reason: str


@dataclass(frozen=True)
class Probe:
    """One conversation to compare. When ``limit`` is not empty, a difference is no refusal but that limit."""

    name: str
    messages: tuple[dict[str, str], ...]
    limit: str = ""


def choose(render: Render, bos: str = "") -> Choice:
    """The family that says exactly what ``render`` says.

    ``bos`` is the text of the beginning-of-sequence token when the server's tokenizer adds that token by itself (the
    GGUF's ``tokenizer.ggml.add_bos_token``): it is then cut off the front of what ``render`` gives.
    """
    wanted = {probe.name: _rendered(render, probe, bos) for probe in PROBES}
    if wanted["user"] is None:
        return Choice(None, "the model's own chat template cannot render a single question")
    best, reason = -1, ""
    for family in families():
        text = _filled(family, source(family), wanted)
        equal, first = _compare(text, wanted)
        if first is None:
            found = GoTemplate(
                family=family,
                text=text,
                stop=stops(family),
                default_system=_assigned(text, "default"),
                compared=equal,
                limits=_limits(text, wanted),
            )
            return Choice(found, f"{family} says the same as the model's own template in {equal} conversations")
        if equal > best:
            best = equal
            reason = f"no family fits the model's own chat template, which begins {wanted['user'][:40]!r}"
        if equal and equal == best:
            reason = f"no family fits the model's own chat template; the nearest, {family}, differs for {first}"
    return Choice(None, reason)


def render_as_ollama(text: str, messages: Messages) -> str:
    """What Ollama gives the model for this conversation (the tokenizer's own beginning token is not in it).

    Raises GoTemplateError when the template cannot be run. Source: ``Template.Execute`` and ``collate`` in Ollama's
    ``template/template.go``, for templates that use ``.Messages``.
    """
    return _read(text).render(values(messages))


def values(messages: Messages) -> dict[str, Any]:
    """The data Ollama gives a template: neighbours of one role merged with an empty line, system prompts joined."""
    collated: list[go_text.Struct] = []
    for message in messages:
        role, content = message["role"], message["content"]
        if collated and collated[-1]["Role"] == role:
            collated[-1]["Content"] += "\n\n" + content
        else:
            collated.append(go_text.Struct(Role=role, Content=content))
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    return {"System": system, "Messages": collated, "Response": "", "Think": False, "IsThinkSet": False}


# --- the files ---------------------------------------------------------------------------------------------------

_HEAD = re.compile(r"\{\{- /\* (\{.*?\}) \*/ -\}\}\n")


@cache
def families() -> tuple[str, ...]:
    """Names of the families, in order."""
    return tuple(sorted(path.name.removesuffix(".gotmpl") for path in FOLDER.glob("*.gotmpl")))


@cache
def source(family: str) -> str:
    """A family's template, without its first line."""
    return _file(family)[1]


@cache
def stops(family: str) -> tuple[str, ...]:
    """The strings at which an answer of this family must end."""
    return tuple(json.loads(_file(family)[0])["stop"])


def _file(family: str) -> tuple[str, str]:
    text = (FOLDER / f"{family}.gotmpl").read_bytes().decode("utf-8").replace("\r\n", "\n")
    head = _HEAD.match(text)
    assert head is not None, f"{family}.gotmpl does not begin with its comment"
    return head[1], text[head.end() :]


@cache
def _read(text: str) -> go_text.Template:
    return go_text.read(text)


# --- filling in and comparing -------------------------------------------------------------------------------------

MARK = "qqSYSTEMqq"


def _rendered(render: Render, probe: Probe, bos: str) -> str | None:
    """None when the model's template refuses the conversation."""
    try:
        text = render([dict(m) for m in probe.messages], True)
    except Exception:  # a template is foreign code: whatever it raises means that it refuses
        return None
    return text.removeprefix(bos) if bos else text


def _assign(text: str, name: str, value: str) -> str:
    return text.replace(f'${name} := ""', f"${name} := {json.dumps(value, ensure_ascii=False)}", 1)


def _assigned(text: str, name: str) -> str:
    found = re.search(rf'\${name} := ("(?:\\.|[^"\\])*")', text)
    return str(json.loads(found[1])) if found else ""


def _filled(family: str, text: str, wanted: Mapping[str, str | None]) -> str:
    """The family's text with ``$before`` and ``$default`` as the model has them, where it has them."""
    ours = _own(text, PROBE["marked system"])
    theirs = wanted["marked system"]
    if '$before := ""' in text and theirs is not None:
        ours_head, ours_tail = ours.split(MARK, 1)
        head, found, tail = theirs.partition(MARK)
        if found and tail == ours_tail and head.startswith(ours_head):
            text = _assign(text, "before", head[len(ours_head) :])
            ours = _own(text, PROBE["marked system"])
    alone = wanted["user"]
    if '$default := ""' in text and alone is not None and MARK in ours:
        head, tail = ours.split(MARK, 1)
        if len(alone) > len(head) + len(tail) and alone.startswith(head) and alone.endswith(tail):
            text = _assign(text, "default", alone[len(head) : len(alone) - len(tail)])
    return text


def _own(text: str, probe: Probe) -> str:
    try:
        return render_as_ollama(text, probe.messages)
    except ExportError as error:
        raise AssertionError(f"a shipped template fails: {error}") from error


def _compare(text: str, wanted: Mapping[str, str | None]) -> tuple[int, str | None]:
    """(how many required probes are equal, the first that is not, in words)."""
    equal, first = 0, None
    for probe in PROBES:
        theirs = wanted[probe.name]
        if theirs is None or probe.limit:
            continue
        ours = _own(text, probe)
        if ours == theirs:
            equal += 1
        elif first is None:
            first = f"“{probe.name}”: {_difference(ours, theirs)}"
    return equal, first


def _difference(ours: str, theirs: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    start = max(0, at - 12)
    return f"the model's has {theirs[start : at + 28]!r} where Ollama would have {ours[start : at + 28]!r}"


def _limits(text: str, wanted: Mapping[str, str | None]) -> tuple[str, ...]:
    found = [p.limit for p in PROBES if p.limit and wanted[p.name] not in (None, _own(text, p))]
    if wanted["system"] is None:
        found.append("the model's own chat template refuses a system prompt; Ollama will accept one")
    return tuple(dict.fromkeys(found))


def _talk(*texts: str, system: str | None = None) -> tuple[dict[str, str], ...]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return (*([] if system is None else [{"role": "system", "content": system}]), *turns)


_TRIMS = "the model's own chat template trims white space around messages; Ollama keeps it"
_EMPTY = "the model's own chat template treats an empty system prompt otherwise than Ollama"
_THINKS = "the model's own chat template takes earlier thinking (<think> …) out of the conversation; Ollama keeps it"
PROBES = (
    Probe("user", _talk("Hi")),
    Probe("system", _talk("Hi", system="Be brief.")),
    Probe("marked system", _talk("Hi", system=MARK)),
    Probe("three turns", _talk("Hi", "Hello! How can I help?", "Tell me a joke.")),
    Probe("system and three turns", _talk("Hi", "Hello!", "And now?", system="You are a pirate.")),
    Probe("seven turns", _talk("1?", "1.", "2?", "2.", "3?", "3.", "4?", system="Count.")),
    Probe("seven turns without system", _talk("1?", "1.", "2?", "2.", "3?", "3.", "4?")),
    Probe("Chinese", _talk("你好，请介绍一下你自己。", "你好！我是助手。", "谢谢。", system="你是一个有用的助手。")),
    Probe("emoji and accents", _talk("Ünïcödé 👩‍👩‍👧 \u00a0 שלום ｆｕｌｌ", "naïve café ☕", "e\u0301?")),
    Probe("code", _talk("```python\ndef f(x):\n\treturn {'a': [x]}\n```\nWhat is it?", "`f(1)`\n\n- a\n- b", "ok")),
    Probe("template marks", _talk("{{ .Prompt }} {% if x %} {{- y -}} ${z} %s %d", "{{", "}}", system="{{ .System }}")),
    Probe("quotes and backslashes", _talk('"a" \'b\' `c` \\n \\\\ <b>&amp;</b> """', "\\", "'")),
    Probe("line breaks inside", _talk("one\ntwo\n\n\nfive\r\nsix\tseven", "a\nb", "c", system="x\n\ny")),
    Probe("empty answer", _talk("Say nothing.", "", "Thanks.")),
    Probe("empty question", _talk("")),
    Probe("spaces around", _talk("  Hi \n", " Hello\n\n", "\tagain "), limit=_TRIMS),
    Probe("spaces around system", _talk("Hi", system=" Be brief.\n"), limit=_TRIMS),
    Probe("empty system", _talk("Hi", system=""), limit=_EMPTY),
    Probe("thinking", _talk("2+2?", "<think>\nHm.\n</think>\n\n4", "And 3+3?"), limit=_THINKS),
)
PROBE = {probe.name: probe for probe in PROBES}
