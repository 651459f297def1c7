"""Which turns are learned, what a conversation that is too long loses, and what serving stops at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from render_tools import DATE, WEATHER, call, chat, learned_texts, renderer_of, told, trl_template
from test_render_families import ALPACA, VICUNA
from test_render_fit import CALLS, SAYS, TOOLS, chatml
from tunesmith.config.errors import RenderError
from tunesmith.data.example import Chat, Message
from tunesmith.models.open import open_tokenizer
from tunesmith.render.conversation import Renderer
from tunesmith.render.learning import straddling_tokens, token_mask
from tunesmith.render.stop import end_of_turn_token, serving, stop_token_ids

END = "<|im_end|>"
TALK = chat("Hi", "Hello.", "More?", "No.", system="Be brief.")
WITH_CALLS = chatml(SAYS + CALLS.replace("ARGS", "{{ c.function.arguments | tojson }}"), TOOLS)


@pytest.fixture(scope="module")
def tokenizer(smol: Path) -> Any:
    return open_tokenizer(smol)


def test_answers_last_answer_everything(tokenizer: Any) -> None:
    learned = {
        how: Renderer(tokenizer, learn=how, date=DATE).render(TALK) for how in ("answers", "last_answer", "everything")
    }
    assert learned_texts(learned["answers"]) == [f"Hello.{END}", f"No.{END}"]
    assert learned_texts(learned["last_answer"]) == [f"No.{END}"]
    assert learned["everything"].mask == (0, *[1] * (len(learned["everything"].ids) - 1))
    with pytest.raises(RenderError, match="learn = 'answer'"):
        Renderer(tokenizer, learn="answer")


@pytest.mark.parametrize(
    ("how", "expected"),
    [("answers", [f"Hi{END}", f"No.{END}"]), ("last_answer", [f"Hi{END}", f"No.{END}"])],
)
def test_what_a_message_says_itself_wins(tokenizer: Any, how: str, expected: list[str]) -> None:
    conversation = Chat(
        (Message("user", "Hi", train=True), Message("assistant", "Hello.", train=False), *TALK.messages[3:])
    )
    assert learned_texts(Renderer(tokenizer, learn=how, date=DATE).render(conversation)) == expected


def test_everything_but_what_is_said_not_to_be(tokenizer: Any) -> None:
    conversation = Chat((Message("user", "Hi"), Message("assistant", "Hello.", train=False), *TALK.messages[3:]))
    text = "".join(learned_texts(Renderer(tokenizer, learn="everything", date=DATE).render(conversation)))
    assert "Hello." not in text and "Hi" in text and f"No.{END}" in text


def test_mask_of_tokens() -> None:
    offsets = [(0, 2), (2, 2), (2, 5), (5, 6), (5, 6), (6, 9)]
    assert token_mask(offsets, [(2, 6)]) == [0, 0, 1, 1, 1, 0]
    assert token_mask(offsets, [(1, 5), (6, 9)]) == [0, 0, 1, 0, 0, 1]
    assert token_mask([*offsets[3:], *offsets[:3]], [(2, 6)]) == [1, 1, 0, 0, 0, 1], "tokens out of order"
    assert straddling_tokens(offsets, [(1, 5), (6, 9)]) == 1


# --- too long -------------------------------------------------------------------------------------------------------


def test_tool_calls_stay_with_their_results(tokenizer: Any) -> None:
    old = (Message("user", "Rain? " * 20), call(city="Oslo"), told("dry"), Message("assistant", "No."))
    conversation = Chat((Message("system", "S."), *old, *old[:1], *old[1:]), (WEATHER,), origin="rows.json:7")
    whole = renderer_of(tokenizer, WITH_CALLS).render(conversation)
    short = renderer_of(tokenizer, WITH_CALLS, max_length=len(whole.ids) - 1).render(conversation)
    assert short.dropped_turns == 4 and "S." in short.text and '"weather"' in short.text
    assert learned_texts(short) == learned_texts(whole)[2:]


def test_turns_after_the_last_learned_one_go_first(tokenizer: Any) -> None:
    turns = (
        *chat("a", "one", "b", "two").messages,
        Message("user", "c " * 50),
        Message("assistant", "three", train=False),
    )
    rendered = Renderer(tokenizer, max_length=80, date=DATE).render(Chat(turns))
    assert rendered.dropped_turns == 2 and learned_texts(rendered) == [f"one{END}", f"two{END}"]


def test_a_last_exchange_that_does_not_fit_is_refused(tokenizer: Any) -> None:
    with pytest.raises(
        RenderError, match=r"rows.json:7: .* has \d+ tokens, the longest allowed is 40, and its last exchange"
    ):
        Renderer(tokenizer, max_length=40, date=DATE).render(chat("a", "one", "b", "word " * 60))


def test_a_long_conversation_is_rendered_a_few_times_only(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """400 turns of which the last 8 fit: binary search, not one rendering for each."""
    renderer = Renderer(tokenizer, max_length=250, date=DATE)
    conversation = chat(*("some words " * 10 for _ in range(400)))
    texts: list[str] = []
    encode = renderer.encode_text
    monkeypatch.setattr(renderer, "encode_text", lambda text: (texts.append(text), encode(text))[1])
    rendered = renderer.render(conversation)
    assert len(texts) < 15 and 0 < len(rendered.ids) <= 250
    one_more = Chat(conversation.messages[rendered.dropped_turns - 2 :])
    assert len(Renderer(tokenizer, date=DATE).render(one_more).ids) > 250, "no more is dropped than must be"


words = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Co", "Cn"), include_characters="\n"),
    min_size=1,
    max_size=40,
)
answers = words.map(lambda t: f"w{t}w").filter(lambda t: "<|" not in t)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(texts=st.lists(answers, min_size=2, max_size=10), limit=st.integers(60, 300), last=st.booleans())
def test_truncation_keeps_the_last_answer_and_its_end(tokenizer: Any, texts: list[str], limit: int, last: bool) -> None:
    texts = texts[: len(texts) // 2 * 2]
    learn = "last_answer" if last else "answers"
    try:
        rendered = Renderer(tokenizer, max_length=limit, learn=learn, date=DATE).render(chat(*texts, system="S"))
    except RenderError as error:
        assert "does not fit" in str(error)
        return
    assert len(rendered.ids) <= limit and "S" in rendered.text
    expected = texts[1::2][-1:] if last else texts[1 + rendered.dropped_turns :: 2]
    assert learned_texts(rendered) == [answer + END for answer in expected]


FAMILIES = [
    "trl/qwen2_5",
    "trl/qwen3",
    "trl/llama3_1",
    "trl/gemma",
    "trl/gptoss",
    "trl/cohere",
    "trl/phi3_5",
    "own/vicuna",
]
ENDS = {
    "llama3_1": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "phi3_5": "<|end|>",
    "vicuna": "</s>",
}


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(name=st.sampled_from(FAMILIES), texts=st.lists(answers, min_size=2, max_size=6))
def test_decoded_learned_tokens_are_the_answers(tokenizer: Any, name: str, texts: list[str]) -> None:
    """For any conversation: ids are ``apply_chat_template``'s; the learned tokens decode to the answers with their ends."""
    texts = texts[: len(texts) // 2 * 2]
    stem = name.partition("/")[2]
    template = VICUNA if stem == "vicuna" else trl_template(stem)
    if template is None:
        pytest.skip("trl is not installed")
    renderer = _renderer(tokenizer, template)
    conversation = chat(*texts)
    rendered = renderer.render(conversation)
    own = renderer.tokenizer.apply_chat_template(
        conversation.as_dicts(), chat_template=renderer.template, return_dict=True
    )
    assert list(rendered.ids) == list(own["input_ids"])
    end = ENDS.get(stem, END)
    ids = [t for t, flag in zip(rendered.ids, rendered.mask) if flag]
    decoded = renderer.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if stem == "gptoss":
        ends = ["<|end|>"] * (len(texts) // 2 - 1) + ["<|return|>"]
        expected = "".join(f"<|channel|>final<|message|>{a}{e}" for a, e in zip(texts[1::2], ends))
    else:
        opens = [
            "<think>\n\n</think>\n\n" if stem == "qwen3" and i == len(texts) // 2 - 1 else ""
            for i in range(len(texts) // 2)
        ]
        opens = [" " if stem == "vicuna" else o for o in opens]
        expected = "".join(o + a + end for o, a in zip(opens, texts[1::2]))
    assert decoded == expected


_made: dict[str, Renderer] = {}


def _renderer(tokenizer: Any, template: str) -> Renderer:
    if template not in _made:
        _made[template] = renderer_of(tokenizer, template, bos="<s>", eos="</s>")
    return _made[template]


# --- serving --------------------------------------------------------------------------------------------------------

UNENDED = ALPACA.replace(" + eos_token", "")
LAST_ONLY = ALPACA.replace(" + eos_token", " + (eos_token if loop.last else '')")


def test_stops_of_templates(tokenizer: Any) -> None:
    chatty = serving(renderer_of(tokenizer, chatml(SAYS), bos="<bos>"))
    assert (chatty.end_of_turn, chatty.stop_texts, chatty.bos) == (END, (END,), "")
    assert serving(renderer_of(tokenizer, "{{ bos_token }}" + chatml(SAYS), bos="<bos>")).bos == "<bos>"
    vicuna = serving(renderer_of(tokenizer, VICUNA, bos="<s>", eos="</s>"))
    assert (vicuna.end_of_turn, vicuna.stop_texts) == ("</s>", ("</s>",))


def test_stops_of_templates_without_an_end_of_turn(tokenizer: Any) -> None:
    renderer = renderer_of(tokenizer, UNENDED, eos="</s>")
    assert end_of_turn_token(renderer) is None and stop_token_ids(renderer) == (renderer.tokenizer.eos_token_id,)
    assert serving(renderer).stop_texts == ("### Instruction:",)
    assert renderer.render(chat("Hi", "Hello.", "More?", "No.")).unended == 2


def test_a_template_that_ends_the_last_turn_only(tokenizer: Any) -> None:
    renderer = renderer_of(tokenizer, LAST_ONLY, eos="</s>")
    rendered = renderer.render(chat("Hi", "Hello.", "More?", "No."))
    assert learned_texts(rendered) == ["Hello.", "No.</s>"] and rendered.unended == 1
    assert serving(renderer).stop_texts == ("</s>", "### Instruction:")


def test_the_token_after_which_a_model_goes_on_does_not_stop(tokenizer: Any) -> None:
    """gpt-oss ends its thinking with ``<|end|>`` too: as a stop it would cut off every answer after it."""
    template = trl_template("gptoss")
    if template is None:
        pytest.skip("trl is not installed")
    assert serving(renderer_of(tokenizer, template, eos="<|return|>")).stop_texts == ("<|return|>", "<|call|>")


@pytest.mark.parametrize("name", ["qwen3", "glm4moe"])
def test_words_that_a_template_cuts_away_are_no_silent_loss(tokenizer: Any, name: str) -> None:
    """These templates take what stands before a ``</think>`` for thinking: of such an answer only the rest would be learned."""
    template = trl_template(name)
    if template is None:
        pytest.skip("trl is not installed")
    renderer = renderer_of(tokenizer, template)
    for answer in "Write </think> at the end.", "a <think>b</think> c":
        for more in (), ("ok?", "Yes."):
            for learn in "answers", "last_answer", "everything":
                with pytest.raises(RenderError, match=r"leaves out some words of turn 2|where turn 2 stands"):
                    Renderer(renderer.tokenizer, date=DATE, learn=learn).render(
                        chat("How do I close it?", answer, *more)
                    )
    empty = renderer.render(chat("Hi", "<think>\n\n</think>\n\nHello."))
    end = "<|im_end|>" if name == "qwen3" else ""  # glm4moe ends no last answer, and that is counted
    assert learned_texts(empty)[0].endswith("Hello." + end) and empty.unended == (not end)


def test_learning_everything_counts_what_is_not_shown_too(tokenizer: Any) -> None:
    template = trl_template("qwen3")
    if template is None:
        pytest.skip("trl is not installed")
    thought = Chat(
        (Message("user", "a"), Message("assistant", "b", thinking="t"), Message("user", "c"), Message("assistant", "d"))
    )
    counts = {
        learn: Renderer(renderer_of(tokenizer, template).tokenizer, date=DATE, learn=learn)
        .render(thought)
        .dropped_thinking
        for learn in ("answers", "everything")
    }
    assert counts == {"answers": 1, "everything": 1}
