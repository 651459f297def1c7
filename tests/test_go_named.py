"""Every template that models can be trained with has an Ollama template, which real Go finds to say the same."""

from __future__ import annotations

import pytest

from go_published import DATE, Chosen, Talk, talks
from published import by_name, templates
from published import tokenizer_for as published_tokenizer
from test_go_published import differing
from test_templates import tokenizer_for
from tunesmith.export.go_template import PROBES, THINKING_PROBES, TOOL_PROBES, choose, model_template, stops
from tunesmith.render.conversation import Renderer
from tunesmith.render.named import all_named, named
from tunesmith.render.template import baked

FAMILIES = {
    "alpaca": "alpaca", "chatml": "chatml-thinking", "command-r": "command-r", "deepseek": "deepseek", "exaone": "exaone", "gemma": "gemma",
    "glm4": "glm4", "granite": "granite3-tools", "llama2": "llama2", "llama3": "llama3", "llama3.1": "llama3.1", "mistral-v1": "mistral-v1",
    "mistral-v3": "mistral-v3-tools", "mistral-v3-tekken": "mistral-v3-tekken-tools", "mistral-v7-tekken": "mistral-v7-tekken-tools",
    "olmo2": "tulu", "openchat": "openchat", "phi3": "phi3", "phi4": "phi4", "phi4-mini": "phi4-mini-tools", "qwen2.5": "qwen2.5",
    "qwen3": "qwen3", "tulu": "tulu", "vicuna": "vicuna", "zephyr": "zephyr",
}  # fmt: skip


def test_the_list_is_whole() -> None:
    assert FAMILIES.keys() == all_named().keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_named_template_is_served_as_it_was_trained(name: str) -> None:
    template = named(name)
    renderer = Renderer(tokenizer_for(template), template=template.text, date=DATE)
    model = model_template(renderer)
    bos = "<s>" if "{{- bos_token" in template.text or name == "llama2" else ""
    choice = choose(lambda messages, generation: renderer.text(messages, generation=generation), bos, model)
    assert choice.template is not None and choice.template.family == FAMILIES[name], choice.reason
    assert ("tools" in choice.capabilities) == (template.tools != "no")
    assert ("thinking" in choice.capabilities) == (template.thinking != "no")
    assert choice.template.stop == stops(FAMILIES[name])
    each = Chosen(by_name(templates()[0].name), model, bos, choice)
    probes = [*PROBES, *(TOOL_PROBES if model.tools else ())]
    probes += [p for p in THINKING_PROBES if model.thinking and (model.tools or not p.needs_tools)]
    assert differing(each, [Talk(p.messages, p.tools, p.think) for p in probes if not p.limit]) == []
    assert differing(each, [*talks(20, 3, model.tools, model.thinking)]) == []


@pytest.mark.parametrize(("thinks", "opening"), [(False, "<think>\n\n</think>\n\n"), (True, "")])
@pytest.mark.parametrize("kept", [True, False])
def test_a_variable_that_is_kept_with_the_model_is_kept_in_ollama(thinks: bool, opening: str, kept: bool) -> None:
    """A run whose template_args turn thinking off is served without it, whatever the request says, and claims none."""
    template, given = named("qwen3"), {"enable_thinking": thinks}
    text = baked(template.text, given) if kept else template.text
    renderer = Renderer(tokenizer_for(template), template=text, template_args={} if kept else given)
    choice = choose(lambda m, generation: renderer.text(m, generation=generation), "", model_template(renderer))
    assert choice.template is not None, choice.reason
    each = Chosen(by_name(templates()[0].name), model_template(renderer), "", choice)
    asked = [Talk(({"role": "user", "content": "Hi"},), (), think) for think in (None, True, False)]
    assert differing(each, asked) == []
    assert choice.capabilities == ("completion", "tools", *(["thinking"] if thinks else []))
    assert (each.rendered(asked[1]) or "").endswith("assistant\n" + opening)


def test_without_the_model_s_tools_nothing_is_claimed() -> None:
    """Who asks with plain text only gets a template that claims neither tools nor thinking."""
    template = named("qwen3")
    renderer = Renderer(tokenizer_for(template), template=template.text)
    choice = choose(lambda m, generation: renderer.text(m, generation=generation))
    assert choice.template is not None and choice.template.family == "chatml"
    assert choice.capabilities == ("completion",)


def test_tools_that_are_written_otherwise_are_not_claimed() -> None:
    """The text is ChatML, the list of tools is not Qwen's: the server must not be told that the model can use tools."""
    template = named("qwen2.5")
    text = template.text.replace("# Tools", "# My tools")
    assert text != template.text
    renderer = Renderer(tokenizer_for(template), template=text)
    choice = choose(lambda m, generation: renderer.text(m, generation=generation), "", model_template(renderer))
    assert choice.template is not None and choice.template.family == "chatml"
    assert choice.capabilities == ("completion",)
    assert "without tools" in choice.reason and "# My tools" in choice.reason and "newer servers" in choice.reason


FALCON3 = (
    "{% if tools %}{{ '<|system|>\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% set messages = messages[1:] %}{% endif %}"
    "{{ 'You can call functions.\n\n<tools>' + tools|tojson(indent=2) + '</tools>\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}{{ '<|assistant|>\n<tool_response>\n' + m.content + '\n</tool_response>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content }}"
    "{% if m.tool_calls %}{{ '\n<tool_call>\n' + m.tool_calls|tojson(indent=2) + '\n</tool_call>' }}{% endif %}{{ eos_token + '\n' }}"
    "{% else %}{{ '<|' + m.role + '|>\n' + m.content + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""Falcon 3's form, written after its tokenizer_config.json: no package publishes it. Tools are JSON over several lines."""


def test_falcon3_has_the_form_of_tulu() -> None:
    """Only answers end with a token; its tools, which no TEMPLATE can write in that form, are not claimed."""
    published = by_name("ollama/tinyllama:1.1b")
    renderer = Renderer(published_tokenizer(published), template=FALCON3)
    model = model_template(renderer)
    choice = choose(lambda messages, generation: renderer.text(messages, generation=generation), "", model)
    assert choice.template is not None and choice.template.family == "tulu", choice.reason
    assert choice.capabilities == ("completion",)
    each = Chosen(published, model, "", choice)
    assert differing(each, [*(Talk(p.messages) for p in PROBES if not p.limit), *talks(20, 3, False, False)]) == []
    assert choice.template.stop == stops("tulu")
