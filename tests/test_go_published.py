"""Every Ollama template of ours, run by real Go, says what the template says that its family is published with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from go_published import JUDGES, PAGE, Chosen, Talk, chosen, page, talks
from go_runner import go_job, run_go
from published import by_name, missing, templates
from tunesmith.export.go_capabilities import call_tag, capabilities
from tunesmith.export.go_template import PROBES, THINKING_PROBES, TOOL_PROBES, families, source
from tunesmith.export.go_text import read

FAMILIES = {
    "trl/qwen2_5": ("qwen2.5", "tools"),
    "ollama/qwen2.5:0.5b": ("qwen2.5", "tools"),
    "trl/qwen3": ("qwen3", "tools thinking"),
    "trl/qwen3_instruct_2507": ("qwen2.5", "tools"),
    "ollama/smollm2:135m": ("chatml", ""),
    "ollama/yi-coder:1.5b": ("chatml", ""),
    "trl/llama3": ("llama3", ""),
    "trl/llama3_1": ("llama3.1", "tools"),
    "trl/llama3_2": ("llama3.1", "tools"),
    "ollama/llama2:7b": ("llama2", ""),
    "mistral-common/v1": ("mistral-v1", ""),
    "mistral-common/v3": ("mistral-v3-tools", "tools"),
    "mistral-common/v3-tekken": ("mistral-v3-tekken-tools", "tools"),
    "mistral-common/v7": ("mistral-v7-tools", "tools"),
    "mistral-common/v11": ("mistral-v11", "tools"),
    "mistral-common/v13": ("mistral-v13", "tools thinking"),
    "ollama/mistral-small:24b": ("mistral-v7-tekken", ""),
    "trl/gemma": ("gemma", ""),
    "trl/gemma3": ("gemma", ""),
    "trl/phi3_5": ("phi3", ""),
    "ollama/phi4:14b": ("phi4", ""),
    "ollama/phi4-mini:3.8b": ("phi4-mini", ""),
    "trl/deepseek_r1_distill": ("deepseek-r1", "thinking"),
    "ollama/deepseek-v3:671b": ("deepseek", ""),
    "ollama/glm4:9b": ("glm4", ""),
    "trl/glm4moe": ("glm4.5", "thinking"),
    "trl/cohere": ("command-r", ""),
    "ollama/granite3-dense:2b": ("granite3", ""),
    "ollama/granite4:350m": ("granite4", "tools"),
    "ollama/olmo2:7b": ("tulu", ""),
    "ollama/tulu3:70b": ("tulu", ""),
    "ollama/exaone3.5:7.8b": ("exaone", ""),
    "ollama/openchat:7b": ("openchat", ""),
    "ollama/tinyllama:1.1b": ("zephyr", ""),
    "trl/gptoss": ("gpt-oss", "tools thinking"),
    "trl/gemma4": ("derived", ""),
    "trl/lfm2_2_5": ("derived", "thinking"),
}


def get(name: str) -> Chosen:
    """What is chosen for a published template. Skips where its package cannot be had."""
    if all(published.name != name for published in templates()):
        pytest.skip(f"{name}: {missing()}")
    return chosen(by_name(name))


def differing(each: Chosen, conversations: Sequence[Talk]) -> list[str]:
    """What real Go makes of the chosen template, where it is not what the published one says; also checks that some are compared."""
    template = each.choice.template
    assert template is not None, each.choice.reason
    wanted = [(talk, text) for talk in conversations if (text := each.rendered(talk)) is not None]
    results = run_go([go_job(template.text, talk.messages, talk.tools, talk.think) for talk, _ in wanted])
    assert len(wanted) > len(conversations) // 3, "nearly all conversations are refused"
    return [
        f"{talk}\n{result['error']}\n{result['text']!r}\n{text!r}"
        for (talk, text), result in zip(wanted, results, strict=True)
        if result["error"] or result["text"] != text
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_chosen_and_real_go_agrees_with_the_published_template(name: str) -> None:
    each = get(name)
    family, claims = FAMILIES[name]
    template = each.choice.template
    assert template is not None, each.choice.reason
    assert (template.family, " ".join(template.capabilities[1:])) == (family, claims), each.choice.reason
    probes = [*PROBES, *(TOOL_PROBES if "tools" in claims else ())]
    probes += [p for p in THINKING_PROBES if "thinking" in claims and ("tools" in claims or not p.needs_tools)]
    asked = [Talk(p.messages, p.tools, p.think) for p in probes if not p.limit]
    assert differing(each, asked) == []
    assert differing(each, [*talks(30, 1, "tools" in claims, "thinking" in claims)]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [p.name for p in templates() if p.name not in JUDGES])
def test_every_choice_holds_in_conversations_at_random(name: str) -> None:
    each = get(name)
    if each.choice.template is None:
        assert name in ("ollama/firefunction-v2:70b",), each.choice.reason
        return
    claims = each.choice.capabilities
    assert differing(each, [*talks(150, 2, "tools" in claims, "thinking" in claims)]) == []


def test_every_file_is_chosen_for_some_published_template_or_named_below() -> None:
    """Those that no package publishes a template for; they are compared with the templates of tests/test_go_named.py."""
    alone = {
        "alpaca",
        "vicuna",
        "chatml-thinking",
        "granite3-tools",
        "phi4-mini-tools",
        "mistral-v7-tekken-tools",
        "smollm3",
        "mistral-v3",
        "mistral-v3-tekken",
    }
    assert set(families()) - {family for family, _ in FAMILIES.values()} == alone


@pytest.mark.parametrize("family", [f for f in families() if "tools" in capabilities(source(f))])
def test_ollama_finds_calls_where_the_template_writes_them(family: str) -> None:
    """The text at which Ollama begins to look for a call is the text a model of this family begins one with."""
    tag = call_tag(read(source(family))).strip()
    begins = {
        "gpt-oss": "<|start|>assistant to=functions.",
        "llama3.1": "",
        "phi4-mini-tools": "<|tool_call|>[",
        "granite3-tools": "<|tool_call|>[",
        "mistral-v11": "[TOOL_CALLS]",
        "mistral-v13": "[TOOL_CALLS]",
    }
    assert tag == begins.get(
        family,
        "[TOOL_CALLS] ["
        if family in ("mistral-v3-tools", "mistral-v7-tools")
        else "[TOOL_CALLS]["
        if "mistral" in family
        else "<tool_call>",
    )


def test_conversations_at_random_are_of_every_kind() -> None:
    made = [*talks(200, 1, True, True)]
    messages = [*itertools.chain(*(talk.messages for talk in made))]
    assert (
        any(talk.think is False for talk in made)
        and any(talk.tools for talk in made)
        and not all(talk.tools for talk in made)
    )
    assert any(len(m.get("tool_calls", ())) > 1 for m in messages) and any("reasoning_content" in m for m in messages)
    assert all(m["content"] == m["content"].strip() for m in messages)


@pytest.mark.slow
def test_the_page_is_what_was_found() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/go_published.py"
