"""What is learned of fixed conversations, written by hand for each family of published templates.

The templates are read from installed packages; where one is not there, its case is skipped. ``None`` = refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from render_tools import WEATHER, call, chat, learned_texts, renderer_of, told, trl_template
from tunesmith.config.errors import RenderError
from tunesmith.data.example import Chat, Message
from tunesmith.models.open import open_tokenizer

PLAIN = chat("Hi", "Hello.", "More?", "No.", system="Be brief.")
THOUGHT = Chat(
    (
        Message("user", "Hi"),
        Message("assistant", "Hello.", thinking="First."),
        Message("user", "More?"),
        Message("assistant", "No.", thinking="Second."),
    )
)
CALLED = Chat(
    (Message("user", "Rain?"), call(city="Oslo"), told("dry"), Message("assistant", "It is dry.")), (WEATHER,)
)

ALPACA = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\n\n' }}"
    "{% elif m.role == 'user' %}{{ '### Instruction:\n' + m.content + '\n\n' }}"
    "{% elif m.role == 'assistant' %}{{ '### Response:\n' + m.content + eos_token + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
VICUNA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content + ' ' }}"
    "{% elif m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% elif m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
OWN = {"alpaca": ALPACA, "vicuna": VICUNA}


@dataclass(frozen=True)
class Family:
    """What is learned of PLAIN, THOUGHT and CALLED. ``counts`` names what a rendering of THOUGHT reports."""

    template: str
    bos: str
    eos: str
    plain: list[str]
    thought: list[str]
    called: list[str] | None
    counts: dict[str, int] | None = None


def ended(end: str, before: str = "") -> list[str]:
    return [f"{before}Hello.{end}", f"{before}No.{end}"]


def in_content(end: str, before: str = "") -> list[str]:
    """The template knows no thinking: it stands in the content as the data had it."""
    return [f"{before}<think>\nFirst.\n</think>\n\nHello.{end}", f"{before}<think>\nSecond.\n</think>\n\nNo.{end}"]


HERMES_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'
IM, EOT, COHERE, DEEPSEEK = "<|im_end|>", "<|eot_id|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>"
FINAL = "<|channel|>final<|message|>"
DROPPED = {"dropped_thinking": 1, "unlike_serving": 0}
FAMILIES = [
    Family("trl/qwen2_5", "", IM, ended(IM), in_content(IM), [HERMES_CALL, f"It is dry.{IM}"]),
    # Only the last turn shows its thinking, and an empty block where there was none: the model must write that.
    Family(
        "trl/qwen3", "", IM, [f"Hello.{IM}", f"<think>\n\n</think>\n\nNo.{IM}"],
        [f"Hello.{IM}", f"<think>\nSecond.\n</think>\n\nNo.{IM}"],
        [HERMES_CALL, f"<think>\n\n</think>\n\nIt is dry.{IM}"], DROPPED,
    ),
    Family(
        "trl/llama3_1", "<|begin_of_text|>", EOT, ended(EOT), in_content(EOT),
        ['{"name": "weather", "parameters": {"city": "Oslo"}}' + EOT, f"It is dry.{EOT}"],
    ),
    Family("trl/gemma", "<bos>", "<eos>", ended("<end_of_turn>"), in_content("<end_of_turn>"), None),
    Family("trl/gemma3", "<bos>", "<eos>", ended("<end_of_turn>"), in_content("<end_of_turn>"), None),
    Family("trl/phi3_5", "<s>", "<|endoftext|>", ended("<|end|>"), in_content("<|end|>"), None),
    # Cuts thinking off every answer, and opens it in every prompt.
    Family(
        "trl/deepseek_r1_distill", "<｜begin▁of▁sentence｜>", DEEPSEEK, ended(DEEPSEEK), ended(DEEPSEEK), None,
        {"dropped_thinking": 2, "unlike_serving": 2},
    ),
    # No end of its own: the next turn's header ends an answer, and nothing the last one.
    Family(
        "trl/glm4moe", "", "<|endoftext|>", ["\n<think></think>\nHello.<|user|>", "\n<think></think>\nNo."],
        ["\n<think></think>\nHello.<|user|>", "\n<think>Second.</think>\nNo."],
        [
            "\n<think></think>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call><|observation|>",
            "\n<think></think>\nIt is dry.",
        ],
        {"dropped_thinking": 1, "unended": 1},
    ),
    Family(
        "trl/gptoss", "<|startoftext|>", "<|return|>", [f"{FINAL}Hello.<|end|>", f"{FINAL}No.<|return|>"],
        [f"{FINAL}Hello.<|end|>", f"<|channel|>analysis<|message|>Second.<|end|><|start|>assistant{FINAL}No.<|return|>"],
        [' to=functions.weather<|channel|>commentary json<|message|>{"city": "Oslo"}<|call|>', f"{FINAL}It is dry.<|return|>"],
        DROPPED,
    ),
    Family("trl/cohere", "<BOS_TOKEN>", COHERE, ended(COHERE), in_content(COHERE), None),
    Family("ollama/command-r:35b", "<BOS_TOKEN>", COHERE, ended(COHERE), in_content(COHERE), None),
    Family("ollama/phi4:14b", "", IM, ended(IM), in_content(IM), None),
    Family("ollama/smollm2:135m", "<|im_start|>", IM, ended(IM), in_content(IM), None),
    Family("ollama/granite3-dense:2b", "", "<|end_of_text|>", ended("<|end_of_text|>"), in_content("<|end_of_text|>"), None),
    Family(
        "mistral-common/v3-tekken", "<s>", "</s>", ended("</s>"), in_content("</s>"),
        ['[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo"}, "id": "000000001"}]</s>', "It is dry.</s>"],
    ),
    Family("own/alpaca", "", "</s>", ended("</s>"), in_content("</s>"), None),
    Family("own/vicuna", "<s>", "</s>", ended("</s>", " "), in_content("</s>", " "), None),
]  # fmt: skip


def template_of(name: str) -> str:
    source, _, stem = name.partition("/")
    if source == "own":
        return OWN[stem]
    if source == "trl":
        text = trl_template(stem)
        if text is None:
            pytest.skip("trl is not installed")
        return text
    published = pytest.importorskip("published")
    try:
        return str(published.by_name(name).jinja)
    except KeyError:
        pytest.skip(f"{name} cannot be had: {published.missing()}")


@pytest.fixture(scope="module")
def tokenizer(smol: Path) -> Any:
    return open_tokenizer(smol)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.template)
def test_what_is_learned(family: Family, tokenizer: Any) -> None:
    template = template_of(family.template)
    renderer = renderer_of(tokenizer, template, bos=family.bos, eos=family.eos, adds_bos=bool(family.bos))
    plain = renderer.render(PLAIN)
    assert learned_texts(plain) == family.plain
    assert "Be brief." in plain.text
    if family.bos and renderer.text(PLAIN.as_dicts()).startswith(family.bos):
        assert plain.ids[0] == renderer.tokenizer.bos_token_id != plain.ids[1]
    thought = renderer.render(THOUGHT)
    assert learned_texts(thought) == family.thought
    for name, count in (family.counts or {"dropped_thinking": 0, "unlike_serving": 0, "unended": 0}).items():
        assert getattr(thought, name) == count, name
    if family.called is None:
        with pytest.raises(RenderError, match=r"does not show tools|does not write tool calls"):
            renderer.render(CALLED)
    else:
        assert learned_texts(renderer.render(CALLED)) == family.called


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.template)
def test_learned_begins_where_the_prompt_at_serving_ends(family: Family, tokenizer: Any) -> None:
    """What chat, Ollama and the rest are given is the text before the first learned token, wherever the template allows it."""
    renderer = renderer_of(tokenizer, template_of(family.template), bos=family.bos, eos=family.eos)
    rendered = renderer.render(chat("Hi", "Hello."))
    prompt = renderer.text([{"role": "user", "content": "Hi"}], generation=True)
    before = rendered.text[: rendered.offsets[rendered.mask.index(1)][0]]
    assert (before == prompt) == (rendered.unlike_serving == 0)
