"""An Ollama template read off the model's own, for models that no file of ours fits.

It is possible where the model's own is regular: a beginning, with or without the system prompt, then questions and answers with the
same text between them each time, then the beginning of an answer. Conversations of made-up words show these texts. Whether
the result says the same in every probe is for `go_template` to find out: nothing here is believed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.export.go_probes import ModelTemplate

Plain = Callable[[list[dict[str, str]]], str | None]
"""The prompt for a conversation, without the beginning token that the server adds; None when it is refused."""
WORDS = ("zqONEqz", "zqTWOqz", "zqTHREEqz", "zqFOURqz", "zqFIVEqz")
SYSTEM = "zqSYSTEMqz"
_SPECIAL = re.compile(
    r"<\|[^|<>\s]+\|>|<｜[^｜]+｜>|</?s>|</?(?:start|end)_of_[a-z]+>|<\w*end\w*>|\[\|[a-z]+\|\]|\[/?[A-Z_]{3,}\]|<extra_id_\d>"
)


@dataclass(frozen=True)
class Derived:
    """A template and the texts at which answers end."""

    text: str
    stop: tuple[str, ...]


@dataclass(frozen=True)
class _Parts:
    """Texts before the first question (without and with a system prompt: before and after it), between a question and its
    answer, between an answer and the next question, and after the last question."""

    begin: str
    before_system: str | None
    after_system: str
    answer: str
    question: str
    end: str


def derived(plain: Plain, model: ModelTemplate | None, bos: str) -> list[Derived]:
    """Templates that may fit, those that claim thinking behind the one that does not. Empty when the model's own is not regular."""
    parts = _parts(plain)
    if parts is None:
        return []
    stop = _stops(parts)
    texts = [_text(parts, "")]
    if model is not None and model.thinking and model.tagged:
        off, on = (_ending(model, parts, bos, think) for think in (False, True))
        switch = _switch(parts.end, off, on)
        texts += [_text(parts, how, switch) for how in THINKING]
    return [Derived(text, stop) for text in texts]


# --- taking the model's own apart --------------------------------------------------------------------------------


def _parts(plain: Plain) -> _Parts | None:
    long = _cut(plain(_talk(5)), WORDS)
    alone = _cut(plain(_talk(1)), WORDS[:1])
    if long is None or alone is None:
        return None
    begin, answer, question, again, then, end = long
    if (answer, question) != (again, then) or alone != [begin, end]:
        return None
    with_system = _cut(plain([{"role": "system", "content": SYSTEM}, *_talk(3)]), (SYSTEM, *WORDS[:3]))
    if with_system is None:
        return _Parts(begin, None, "", answer, question, end)
    if with_system[2:] != [answer, question, end]:
        return None
    return _Parts(begin, with_system[0], with_system[1], answer, question, end)


def _talk(turns: int) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": WORDS[i]} for i in range(turns)]


def _cut(text: str | None, words: tuple[str, ...]) -> list[str] | None:
    """The texts around the words, each of which must stand in it once, in this order."""
    parts: list[str] = []
    for word in words:
        if text is None or text.count(word) != 1:
            return None
        head, _, text = text.partition(word)
        parts.append(head)
    return [*parts, text or ""]


def _ending(model: ModelTemplate, parts: _Parts, bos: str, think: bool) -> str | None:
    """What stands after the question when the request says to think, or not to; None when something else changes too."""
    try:
        text = model.render([dict(m) for m in _talk(1)], (), think)
    except Exception:  # a template is foreign code: whatever it raises means that it refuses
        return None
    cut = _cut(text.removeprefix(bos) if bos else text, WORDS[:1])
    return cut[1] if cut is not None and cut[0] == parts.begin else None


# --- putting it together -----------------------------------------------------------------------------------------

_THOUGHT = "<think>\n{{ .Thinking }}\n</think>\n\n"
THINKING = {
    "dropped": "{{ if eq (len (slice $.Messages $i)) 1 }}{{ if .Thinking }}" + _THOUGHT + "{{ end }}{{ end }}",
    "kept": "{{ if .Thinking }}" + _THOUGHT + "{{ end }}",
    "last": "{{ if gt $i $last }}{{ if .Thinking }}" + _THOUGHT + "{{ end }}{{ end }}",
}
"""Where an answer shows what was thought: nowhere (but in an answer that is to be continued), always, or after the last question."""


def _text(parts: _Parts, thinking: str, switch: str = "") -> str:
    named = {"begin": parts.begin, "answer": parts.answer, "question": parts.question, "end": parts.end}
    if parts.before_system is not None:
        named |= {"before": parts.before_system, "after": parts.after_system}
    lines = [f"{{{{- ${name} := {_literal(text)} -}}}}" for name, text in named.items()]
    lines += ["{{- $begun := false -}}"]
    if thinking == "last":
        lines += [
            '{{- $last := -1 }}{{ range $i, $m := .Messages }}{{ if eq .Role "user" }}{{ $last = $i }}{{ end }}{{ end -}}'
        ]
    begin = "{{ $begin }}"
    if parts.before_system is not None:
        begin = "{{ if $.System }}{{ $before }}{{ $.System }}{{ $after }}{{ else }}{{ $begin }}{{ end }}"
    lines += [
        "{{- range $i, $m := .Messages }}",
        '{{- if eq .Role "user" }}{{ if $begun }}{{ $question }}{{ else }}'
        + begin
        + "{{ end }}{{ $begun = true }}{{ .Content }}",
        '{{- else if eq .Role "assistant" }}{{ $answer }}' + THINKING.get(thinking, "") + "{{ .Content }}",
        "{{- end }}",
    ]
    last = (
        '{{- if eq (len (slice $.Messages $i)) 1 }}{{ if ne .Role "assistant" }}'
        + (switch or "{{ $end }}")
        + "{{ end }}{{ end }}"
    )
    return "\n".join([*lines, last, "{{- end -}}", ""])


def _switch(end: str, off: str | None, on: str | None) -> str:
    """The end of the prompt where it depends on what the request says of thinking; "" where it does not."""
    said = "{{ $end }}"
    if on is not None and on != end:
        said = "{{ if $.Think }}{{ " + _literal(on) + " }}{{ else }}" + said + "{{ end }}"
    if off is not None and off != end:
        said = "{{ if and $.IsThinkSet (not $.Think) }}{{ " + _literal(off) + " }}{{ else }}" + said + "{{ end }}"
    return said


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _stops(parts: _Parts) -> tuple[str, ...]:
    """The special token that ends an answer; where there is none, the line that begins the next question.

    None where an answer has channels: each of its parts is ended, so what ends the last one is not seen here.
    """
    if "<|channel|>" in parts.answer:
        return ()
    found = _SPECIAL.findall(parts.question)[:1]
    if not found:
        lines = [line for line in parts.question.splitlines() if line.strip()]
        found = lines[-1:]
    return tuple(found)
