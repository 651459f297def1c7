"""Rendering: ids equal apply_chat_template, and exactly the assistant's words with their end-of-turn are learned."""

from __future__ import annotations

import copy
import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.config.errors import RenderError
from tunesmith.data.example import Chat, Message
from tunesmith.models.open import open_tokenizer
from tunesmith.render.conversation import Renderer
from tunesmith.render.packing import pack
from tunesmith.render.stop import end_of_turn_token, stop_token_ids

END = "<|im_end|>"
# What the last turn shows that earlier ones do not, as Qwen3's published template does; our own text.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DATED = "{{ '<|im_start|>system\n' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}" + THINKING
TRIMMING = THINKING.replace("m.content +", "m.content | trim +").replace("and loop.last", "and false")
SHOUTING = TRIMMING.replace("m.content | trim", "m.content | upper")


@pytest.fixture(scope="module")
def renderer(smol: Path) -> Renderer:
    return Renderer(open_tokenizer(smol), max_length=2048, date=datetime.date(2026, 1, 2))


def with_template(renderer: Renderer, template: str) -> Renderer:
    tokenizer = copy.copy(renderer.tokenizer)
    tokenizer.chat_template = template
    return Renderer(tokenizer, max_length=renderer.max_length, date=renderer.date)


def chat(*texts: str, system: str | None = None) -> Chat:
    roles: Any = ["user", "assistant"]
    head = (Message("system", system),) if system is not None else ()
    return Chat((*head, *(Message(roles[i % 2], t) for i, t in enumerate(texts))), origin="test")


def learned_text(renderer: Renderer, conversation: Chat) -> list[str]:
    """Maximal runs of learned tokens, decoded."""
    rendered = renderer.render(conversation)
    runs: list[list[int]] = []
    for i, (token, flag) in enumerate(zip(rendered.ids, rendered.mask)):
        if flag and i and rendered.mask[i - 1]:
            runs[-1].append(token)
        elif flag:
            runs.append([token])
    return [renderer.tokenizer.decode(run) for run in runs]


def test_one_turn_with_its_end(renderer: Renderer) -> None:
    assert learned_text(renderer, chat("Hi", "Hello 你好 🙂")) == ["Hello 你好 🙂" + END]


def test_every_assistant_turn_and_nothing_else(renderer: Renderer) -> None:
    conversation = chat("a", "one", "b", "two", "c", "three", system="S")
    assert learned_text(renderer, conversation) == ["one" + END, "two" + END, "three" + END]


def test_the_same_answer_twice_is_found_twice(renderer: Renderer) -> None:
    assert learned_text(renderer, chat("yes", "yes", "yes", "yes")) == ["yes" + END, "yes" + END]


def test_an_answer_that_looks_like_the_template(renderer: Renderer) -> None:
    answer = "assistant\nuser\nYou are a helpful AI assistant named SmolLM"
    assert learned_text(renderer, chat("q", answer)) == [answer + END]


def test_train_flags_are_obeyed(renderer: Renderer) -> None:
    messages = (
        Message("user", "a"),
        Message("assistant", "one", train=False),
        Message("user", "b", train=True),
        Message("assistant", "two"),
    )
    assert learned_text(renderer, Chat(messages)) == ["b" + END, "two" + END]


def test_a_thinking_block_that_the_model_must_write_is_learned(renderer: Renderer) -> None:
    special = with_template(renderer, THINKING)
    assert learned_text(special, chat("a", "one", "b", "two")) == ["one" + END, "<think>\n\n</think>\n\ntwo" + END]


def test_a_template_that_trims(renderer: Renderer) -> None:
    assert learned_text(with_template(renderer, TRIMMING), chat("a", "  one \n", "b", "two")) == [
        "one" + END,
        "two" + END,
    ]


def test_a_template_that_rewrites_answers_is_refused(renderer: Renderer) -> None:
    with pytest.raises(RenderError, match="cannot tell where turn 2 stands"):
        with_template(renderer, SHOUTING).render(chat("a", "one"))


def test_the_date_is_pinned(renderer: Renderer) -> None:
    assert "02 Jan 2026" in with_template(renderer, DATED).render(chat("a", "b")).text


def test_a_token_across_the_border_is_counted_and_not_learned(renderer: Renderer) -> None:
    """A prompt that ends in a space shares a token with the answer ("▁hello"): serving could not produce it."""
    spaced = with_template(
        renderer, TRIMMING.replace("m.role + '\n'", "m.role + ': '").replace("assistant\n", "assistant: ")
    )
    rendered = spaced.render(chat("a", "hello"))
    assert rendered.text.endswith("assistant: hello<|im_end|>\n") and rendered.straddling == 1
    assert learned_text(spaced, chat("a", "hello")) == [END]
    assert renderer.render(chat("a", "hello")).straddling == 0


def test_a_tokenizer_with_named_templates_uses_the_default(renderer: Renderer) -> None:
    tokenizer = copy.copy(renderer.tokenizer)
    tokenizer.chat_template = {"default": TRIMMING, "tool_use": SHOUTING}
    named = Renderer(tokenizer, date=renderer.date)
    assert learned_text(named, chat("a", "one")) == ["one" + END]


def test_no_template_is_said(renderer: Renderer) -> None:
    with pytest.raises(RenderError, match="no chat template"):
        with_template(renderer, "")


def test_end_of_turn_and_stops(renderer: Renderer) -> None:
    assert end_of_turn_token(renderer) == (2, END)
    assert stop_token_ids(renderer) == (2,)


def test_long_conversations_lose_whole_early_turns(renderer: Renderer) -> None:
    short = Renderer(renderer.tokenizer, max_length=60, date=renderer.date)
    conversation = chat("first " * 40, "one", "second", "two", system="S")
    rendered = short.render(conversation)
    assert rendered.dropped_turns == 2 and len(rendered.ids) <= 60
    assert "first" not in rendered.text and "S" in rendered.text and rendered.text.rstrip().endswith("two" + END)
    with pytest.raises(RenderError, match=r"has \d+ tokens, the longest allowed is 60"):
        short.render(chat("word " * 100, "one"))


letters = st.characters(max_codepoint=0x9FFF, exclude_categories=("Cs", "Cc", "Co", "Cn"), include_characters="\n\t🙂")
words = st.text(letters, min_size=1, max_size=30).filter(lambda t: t.strip() and "<|" not in t)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(texts=st.lists(words, min_size=2, max_size=6), system=st.none() | words)
def test_ids_and_mask_for_any_conversation(renderer: Renderer, texts: list[str], system: str | None) -> None:
    """ids = apply_chat_template; the learned characters are the answers with their end-of-turn, in order."""
    texts = texts[: len(texts) // 2 * 2]
    conversation = chat(*texts, system=system)
    rendered = renderer.render(conversation)
    expected = renderer.tokenizer.apply_chat_template(conversation.as_dicts(), tokenize=True, return_dict=True)[
        "input_ids"
    ]
    assert list(rendered.ids) == list(expected)
    covered = "".join(rendered.text[a:b] for (a, b), flag in zip(_merged(rendered.offsets), rendered.mask) if flag)
    assert covered.count(END) == len(texts) // 2
    for answer, found in zip(texts[1::2], covered.split(END)):
        # A token may straddle the border to the prompt ("\n" + "\n…"); it is then not learned.
        assert answer.endswith(found) and len(answer) - len(found) <= len(answer) - len(answer.lstrip()) + 1


def _merged(offsets: Any) -> list[tuple[int, int]]:
    """Byte-level tokens of one character share its span: count it once."""
    spans, last = [], 0
    for a, b in offsets:
        spans.append((max(a, last), b))
        last = max(last, b)
    return spans


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 600), max_size=60), capacity=st.integers(1, 512))
def test_packing_keeps_every_row_once(lengths: list[int], capacity: int) -> None:
    bins = pack(lengths, capacity)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    for members in bins:
        assert sum(lengths[i] for i in members) <= capacity or len(members) == 1


def test_packing_fills_chat_like_lengths() -> None:
    import random

    generator = random.Random(0)
    lengths = [min(2048, max(8, round(generator.lognormvariate(4.79, 0.9)))) for _ in range(2000)]
    bins = pack(lengths, 4096)
    assert sum(lengths) / (len(bins) * 4096) > 0.97


def test_a_tokenizer_that_encodes_a_conversation_otherwise_than_its_text_is_refused(renderer: Renderer) -> None:
    """What serving would feed the model is not what would be learned."""
    tokenizer = copy.copy(renderer.tokenizer)

    def otherwise(*messages: Any, **how: Any) -> Any:
        encoded = renderer.tokenizer.apply_chat_template(*messages, **how)
        if how.get("tokenize"):
            encoded["input_ids"][3] += 1
        return encoded

    tokenizer.apply_chat_template = otherwise
    with pytest.raises(RenderError, match=r"test: the token ids differ from apply_chat_template's at position 3: \["):
        Renderer(tokenizer, date=renderer.date).render(chat("Hi", "Hello."))


# A prompt that does not show the earlier answers, and turns with nothing but their ends between them.
FORGETFUL = (
    "{% for m in (messages[:1] if add_generation_prompt else messages) %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BARE = "{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}"


def test_a_prompt_that_ends_before_the_turn_learned_last_is_not_where_an_answer_begins(renderer: Renderer) -> None:
    special = with_template(renderer, FORGETFUL)
    assert learned_text(special, chat("a", "one", "b", "two")) == ["one" + END, "two" + END]
    assert special.render(chat("a", "one", "b", "two")).unlike_serving == 1


def test_a_prompt_may_end_where_the_turn_learned_before_it_does(renderer: Renderer) -> None:
    asked = Chat((Message("user", "a", train=True), Message("assistant", "one")))
    rendered = with_template(renderer, BARE).render(asked)
    assert all(rendered.mask) and rendered.unlike_serving == 0
