"""The interpreter that runs Ollama's templates agrees with real Go and real Ollama, and so does what is read off a template."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from go_runner import go_job, run_go
from test_go_template import GEMMA3, LLAMA31, SMOLLM2, TALK, jinja
from tunesmith.export import go_text
from tunesmith.export.go_capabilities import call_tag, capabilities, thinking_tags, variables
from tunesmith.export.go_template import (
    FOLDER,
    PROBES,
    THINKING_PROBES,
    TOOL_PROBES,
    choose,
    families,
    render_as_ollama,
    source,
    stops,
    values,
)
from tunesmith.export.modelfile import Modelfile, parse

RECORDED = Path(__file__).parent / "recorded" / "ollama"
SNIPPETS = [
    "plain",
    "a {{- /* gone */ -}} b{{/* gone too */}}c",
    "x \n {{- .System -}} \n y {{ .Nothing }}!",
    '{{ if .Nothing }}a{{ else if eq .System `Be "kind"` }}b{{ else }}c{{ end }}',
    "{{ with .System }}[{{ . }}]{{ else }}none{{ end }}{{ with .Nothing }}x{{ else }}none{{ end }}",
    "{{ range .Nothing }}x{{ else }}empty{{ end }}",
    "{{ range $i, $m := .Messages }}{{ $i }}{{ if $i }},{{ end }}{{ $m.Role }}/{{ .Content }} {{ end }}",
    "{{ range $m := .Messages }}{{ if eq $m.Role `assistant` }}{{ continue }}{{ end }}{{ len $m.Content }};{{ end }}",
    "{{ range .Messages }}{{ .Role }}{{ if eq .Role `assistant` }}{{ break }}{{ end }}{{ end }}",
    "{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ $y := 3 }}{{ $y }}{{ end }}{{ $x }}",
    "{{ $x := `a` }}{{ range .Messages }}{{ $x := .Role }}{{ $x }}{{ end }}{{ $x }}",
    "{{ $last := `` }}{{ range .Messages }}{{ $last = .Content }}{{ end }}<{{ $last }}>",
    "{{ (index .Messages 0).Role }} {{ (index $.Messages 1).Content | printf `%s|%v|%%` `a` }}",
    "{{ len .Messages }} {{ len (slice .Messages 1) }} {{ slice .System 0 2 }} {{ index .System 1 }}",
    "{{ and .System .Nothing }}|{{ or .Nothing .System }}|{{ and 1 0 `x` }}|{{ or 0 `` false }}|{{ not .System }}",
    "{{ eq 1 2 1 }} {{ ne `a` `b` }} {{ lt 1 2 }} {{ le 2 2 }} {{ gt `b` `a` }} {{ ge 1 2 }}",
    "{{ print 1 2 `a` 3 4 true }} {{ printf `%d %v %s` 7 true `z` }}",
    '{{ `a{{b}}` }}{{ "q\\"\\n\\t\\u4f60" }}',
    "{{ .System | len | printf `%d` }} {{ $.Messages | len }}",
    "{{ if and (gt (len .Messages) 1) (eq (index .Messages 0).Role `user`) }}yes{{ end }}",
    "{{-   .System   -}}",
    "{{ if not .Nothing -}}  a  {{- end }}  b",
]


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'It\'s <now> & "then"',
        "parameters": {
            "type": "object",
            "properties": {
                "when": {"type": ["string", "null"], "enum": ["a", 2, None]},
                "any": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "number"}}]},
                "deep": {"type": "object", "properties": {"x": {"type": "integer", "description": "é\u2028"}}},
            },
            "required": ["when"],
            "$defs": {"b": 1, "a": [2.5, 1e21, 1e-7, 1000000, True, None]},
        },
    },
}
CALLS = [
    {"role": "user", "content": "Hi"},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "Hm.",
        "tool_calls": [
            {
                "id": "c1",
                "function": {"name": "weather", "arguments": {"b": 1, "a": '<é\u00a0👩\u200d👧\x01\x7f">', "c": None}},
            },
            {
                "id": "c2",
                "function": {
                    "name": "weather",
                    "arguments": {"n": [1, 2.5, 1e21, -3e-7, 123456789], "m": {"z": True, "y": "\\\n"}},
                },
            },
        ],
    },
    {"role": "tool", "content": "3", "name": "weather", "tool_call_id": "c1"},
    {"role": "tool", "content": "4", "name": "weather", "tool_call_id": "c2"},
]
MORE_SNIPPETS = [
    "{{ json .Tools }}|{{ .Tools }}|{{ range .Tools }}{{ json .Function.Parameters }}{{ json .Type }}{{ end }}",
    "{{ range .Messages }}{{ .Thinking }}{{ .ToolName }}{{ .ToolCallID }}{{ range .ToolCalls }}{{ .ID }}{{ .Function.Arguments }}{{ end }}{{ end }}",
    "{{ range .Messages }}{{ range .ToolCalls }}{{ range $k, $v := .Function.Arguments }}{{ $k }}={{ printf `%T` $v }}:{{ json $v }};{{ end }}{{ end }}{{ end }}",
    "{{ range .Tools }}{{ range $n, $p := .Function.Parameters.Properties }}{{ $n }}{{ len .Type }}{{ json $p }}{{ with .Items }}x{{ end }}{{ end }}{{ end }}",
    "{{ .Think }}{{ .IsThinkSet }}{{ if and .IsThinkSet (not .Think) }}off{{ end }}",
    "{{ define `p` }}<{{ . }}{{ $ }}>{{ end }}{{ template `p` .System }}{{ range .Messages }}{{ template `p` .Role }}{{ end }}",
    "{{ define `r` }}{{ if . }}{{ index . 0 }}{{ template `r` slice . 1 }}{{ end }}{{ end }}{{ template `r` (slice .Messages 0 0) }}",
    "{{ range .Messages }}{{ range .ToolCalls }}{{ range $k, $v := .Function.Arguments }}{{ if eq (printf `%T` $v) `string` }}{{ printf `%q` $v }}{{ end }}{{ end }}{{ end }}{{ end }}",
    "{{ range $k, $v := .Nothing }}x{{ else }}none{{ end }}{{ printf `%v %v` 1.Nothing 2 }}".replace("1.Nothing", "1"),
]


def go_jobs() -> list[dict[str, Any]]:
    jobs = [go_job(text, TALK, system='Be "kind"') for text in SNIPPETS]
    jobs += [go_job(text, CALLS, [TOOL], think) for text in MORE_SNIPPETS for think in (None, False, True)]
    filled = [choose(jinja(text), bos="<s>").template for text in (SMOLLM2, LLAMA31, GEMMA3)]
    for text in [*map(source, families()), *(t.text for t in filled if t is not None)]:
        jobs += [go_job(text, p.messages, p.tools, p.think) for p in (*PROBES, *TOOL_PROBES, *THINKING_PROBES)]
    return jobs


def test_the_interpreter_agrees_with_go() -> None:
    jobs, read = go_jobs(), cache(go_text.read)
    for job, result in zip(jobs, run_go(jobs), strict=True):
        assert result["error"] == "", job["template"]
        given = values(job["messages"], job["tools"], job["think"])
        given["System"] = job.get("system", given["System"])
        assert read(job["template"]).render(given) == result["text"], job


READ = [
    "{{ range .Messages }}{{ if .Thinking }}<t>{{ .Thinking }}</t>{{ end }}{{ end }}",
    "{{ range $.Messages }}<t>{{ .Thinking }}</t>{{ end }}{{ $.Tools }}{{ .Suffix }}",
    "{{ range .Messages }}a{{ with .Thinking }}<t>{{ . }}</t>{{ end }}b{{ end }}",
    "{{ range .Messages }}{{ range .ToolCalls }}<t>{{ $.Thinking }}</t>{{ end }}{{ end }}",
    '{{ range .Messages }}{{ if (index .ToolCalls 0).Thinking }}<t>{{ end }}{{ if .ToolCalls }}{{ range .ToolCalls }}[X] {"n{{ end }}{{ end }}{{ end }}',
    "{{ if gt (len .ToolCalls) 0 }}a{{ end }}{{ if and .Content .ToolCalls }}{{ json .Content }}b{{ end }}",
    "{{ if .ToolCalls }}{{ if .X }}{{ else }} <c> {{ end }}{{ end }}{{ define `x` }}{{ .Tools.Suffix }}{{ end }}{{ template `x` .Deep }}",
    "{{ if .ToolCalls }}{{ template `x` . }}<d>{{ end }}{{ define `x` }}y{{ end }}",
]


def test_what_ollama_reads_off_a_template_is_read_alike_on_gos_own_tree() -> None:
    texts = [*READ, *map(source, families())]
    for text, result in zip(texts, run_go([go_job(text, TALK) for text in texts]), strict=True):
        template = go_text.read(text)
        named = {name for name in result["vars"] if not name.startswith("$")}
        assert variables(template) == named, text
        assert list(thinking_tags(template)) == result["thinking"], text
        assert call_tag(template) == result["call"], text
        found = capabilities(text)
        assert ("tools" in found) == ("tools" in named) and ("thinking" in found) == all(result["thinking"])


@pytest.mark.parametrize("family", families())
def test_files_of_families(family: str) -> None:
    text = source(family)
    assert stops(family) and len(set(stops(family))) == len(stops(family)) and all(stops(family))
    if "tools" in capabilities(text):  # newer servers look for these words before they let a template answer with tools
        assert 'eq .Role "tool"' in text
        assert "toolcalls" in variables(go_text.read(text))


@pytest.mark.parametrize("family", families())
def test_a_modelfile_holds_every_template(family: str) -> None:
    """Its format has no escapes and drops signs that cannot be printed."""
    text = source(family)
    assert parse(Modelfile("./model.gguf", template=text).render()).template == text


def test_every_part_is_used() -> None:
    used = {
        part
        for family in families()
        for part in re.findall(r'"uses": \[([^\]]*)\]', (FOLDER / f"{family}.gotmpl").read_text())
    }
    named = {name for names in used for name in re.findall(r'"(\w+)"', names)}
    assert named == {path.stem[1:] for path in FOLDER.glob("_*.gotmpl")}


@pytest.mark.parametrize("path", sorted(RECORDED.glob("rendered-*.json")), ids=lambda p: p.stem)
def test_the_interpreter_agrees_with_ollama(path: Path) -> None:
    """Prompts that a real Ollama 0.24 rendered from templates it was given."""
    record = json.loads(path.read_text(encoding="utf-8"))
    for exchange in record["exchanges"]:
        assert render_as_ollama(record["template"], exchange["messages"]) == exchange["rendered"]


def test_there_are_recorded_prompts() -> None:
    assert len(list(RECORDED.glob("rendered-*.json"))) >= 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ if .X }", "not understood"),
        ("{{ nofunc .X }}", "'nofunc' is not implemented"),
        ("{{ if .X }}a", "has no end"),
        ("{{ end }}", "unexpected 'end'"),
        ("{{ template `x` }}", "'template' without a pipeline"),
        ("{{ block `x` . }}", "'block' is not implemented"),
        ("{{ if .X }}{{ define `x` }}{{ end }}{{ end }}", "unexpected 'define'"),
        ("{{ template x . }}", "without a name"),
        ("a\nb{{ (.X }}", "line 2"),
        ("{{ 1.5 }}", "not understood"),
        ("{{ .X | .Y }}", "must be a function"),
        ("{{ break }}", "unexpected 'break'"),
        ("{{/* open", "not closed"),
        ("{{ }}", "empty command"),
        ('{{ "a\\x41" }}', "is not understood"),
    ],
)
def test_what_is_not_implemented_is_refused_when_read(text: str, words: str) -> None:
    with pytest.raises(go_text.GoTemplateError, match=re.escape(words)):
        go_text.read(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ range .Messages }}{{ .Nope }}{{ end }}", "a message has no field 'Nope'"),
        ("{{ template `x` . }}", "there is no template"),
        ("{{ range .Messages }}{{ . }}{{ end }}", "printing a message"),
        ("{{ $x }}", "undefined variable"),
        ("{{ $x = 1 }}", "undefined variable"),
        ("{{ index .Messages 9 }}", "out of range"),
        ("{{ .Messages }}", "printing a []interface"),
        ("{{ eq 1 `1` }}", "different types"),
        ("{{ .System.X }}", "no field 'X'"),
        ("{{ slice .System 3 1 }}", "out of range"),
        ("{{ printf `%d` `x` }}", "not implemented"),
        ("{{ printf `%d` }}", "too few"),
        ("{{ range .System }}{{ end }}", "range over string"),
        ("{{ lt 1 `a` }}", "no order"),
    ],
)
def test_what_fails_when_run_is_an_error(text: str, words: str) -> None:
    with pytest.raises(go_text.GoTemplateError, match=re.escape(words)):
        go_text.read(text).render({**values(TALK), "System": "s"})
