"""Rows in batches come out exactly as alone; packing fills its bins; workers change nothing."""

from __future__ import annotations

import copy
import datetime
import json
import os
import pickle
import random
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tunesmith.config.errors import RenderError, UserError
from tunesmith.data.example import Chat, Message
from tunesmith.models.open import open_tokenizer
from tunesmith.render import workers
from tunesmith.render.batch import BatchRenderer, encoded, render_batch, same
from tunesmith.render.conversation import Rendered, Renderer
from tunesmith.render.packing import pack, pack_stream
from tunesmith.render.positions import ByteTable
from tunesmith.render.skeleton import guards_of

LOOP = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}BODY{{ '<|im_end|>\n' }}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TOOLS = "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
LAST = "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
THOUGHT = (
    "{% if m.reasoning_content and loop.last %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}"
)
CUT = "{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}"
TEMPLATES = {
    "plain": LOOP.replace("BODY", "{{ m.content }}") + PROMPT,
    "trimming": LOOP.replace("BODY", "{{ m.content | trim }}") + PROMPT,
    "last turn differs": LOOP.replace("BODY", LAST + "{{ m.content }}") + PROMPT,
    "thinking": TOOLS + LOOP.replace("BODY", THOUGHT + "{{ m.content | trim }}") + PROMPT,
    "cuts thoughts": TOOLS + LOOP.replace("BODY", CUT) + PROMPT,
    "shouting": LOOP.replace("BODY", "{{ m.content | upper }}") + PROMPT,
    "no end of turn": "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
    "refusing": "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('not that') }}{% endif %}{% endfor %}"
    + LOOP.replace("BODY", "{{ m.content }}")
    + PROMPT,
    "looks at the last question": LOOP.replace("BODY", "{{ m.content }}")
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if '/think' in messages[-1].content %}"
    "{{ '<think>' }}{% endif %}{% endif %}",
}


@pytest.fixture(scope="module")
def renderer(smol: Path) -> Renderer:
    return Renderer(open_tokenizer(smol), max_length=120, date=datetime.date(2026, 1, 2))


def with_template(renderer: Renderer, template: str, **options: Any) -> Renderer:
    return Renderer(
        renderer.tokenizer, template=template, max_length=120, date=renderer.date, ignore_tools=True, **options
    )


def alone(renderer: Renderer, chats: Iterable[Chat]) -> list[Any]:
    """What ``render`` gives or says for each."""
    results: list[Any] = []
    for chat in chats:
        try:
            results.append(renderer.render(chat))
        except RenderError as error:
            results.append(error)
    return results


def plain(results: Iterable[Any]) -> list[Any]:
    """Errors as their messages, so that lists can be compared."""
    return [(r.message, r.hint) if isinstance(r, UserError) else r for r in results]


words = st.one_of(
    st.text(st.characters(max_codepoint=0x1FAFF, exclude_categories=("Cs", "Cn")), max_size=24),
    st.sampled_from(
        ["yes", "no", "  padded \n", "", "\n", "a</think>b", "/think", "user", "<|im_end|>", "e\u0301", "␂"]
    ),
    st.just("word " * 60),
)
answers = st.builds(
    Message,
    role=st.just("assistant"),
    content=words,
    train=st.sampled_from([None, None, True, False]),
    thinking=st.sampled_from(["", "", "so be it", " \n"]),
)
questions = st.builds(Message, role=st.sampled_from(["user", "user", "tool"]), content=words)
tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}


@st.composite
def conversations(draw: st.DrawFn) -> Chat:
    turns = draw(st.lists(st.tuples(questions, answers), min_size=1, max_size=3))
    head = draw(st.lists(st.builds(Message, role=st.just("system"), content=words), max_size=1))
    tools = draw(st.sampled_from([(), (), (tool,)]))
    return Chat((*head, *(m for pair in turns for m in pair)), tools, origin=f"row {draw(st.integers(0, 9))}")


@pytest.mark.parametrize("name", TEMPLATES)
@settings(
    max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
)
@given(
    chats=st.lists(conversations(), max_size=6),
    learn=st.sampled_from(["answers", "answers", "last_answer", "everything"]),
)
def test_a_batch_is_each_row_alone(renderer: Renderer, name: str, chats: list[Chat], learn: str) -> None:
    """Each twice in a row, so that shapes recur and the fast way is taken; the slim form says the same."""
    own = with_template(renderer, TEMPLATES[name], learn=learn)
    batches = BatchRenderer(own)
    expected = alone(own, chats)
    for _ in range(3):
        assert plain(batches.render(chats)) == plain(expected)
    slim = batches.encode(chats)
    for result, right in zip(slim, expected):
        if isinstance(right, RenderError):
            assert plain([result]) == plain([right])
        else:
            assert not isinstance(result, RenderError) and same(result, encoded(right))


def simple(n: int, seed: int = 0) -> list[Chat]:
    draw = random.Random(seed)
    vocabulary = [
        "the",
        "model",
        "learns",
        "from",
        "你好",
        "世界",
        "data",
        "🙂",
        "and",
        "words",
        "that\nbreak",
        "12345",
        "café",
    ]

    def text() -> str:
        return " ".join(draw.choices(vocabulary, k=draw.randint(1, 4)))

    return [
        Chat((Message("user", text()), Message("assistant", text())) * draw.randint(1, 3), origin=f"made:{i}")
        for i in range(n)
    ]


def test_most_rows_go_the_fast_way(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    chats, calls = simple(200), []
    whole = Renderer.render

    def counted(self: Renderer, chat: Chat) -> Rendered:
        calls.append(chat)
        return whole(self, chat)

    monkeypatch.setattr(Renderer, "render", counted)
    results = BatchRenderer(renderer).encode(chats)
    assert not any(isinstance(r, RenderError) for r in results)
    assert len(calls) < 10  # the first of each of the three shapes, and one to check the batch by


def test_places_by_bytes_are_places_by_offsets(renderer: Renderer) -> None:
    """The slim form measures in bytes of tokens where it may; without the table of bytes it uses offsets."""
    chats = simple(60, seed=1)
    by_bytes, by_offsets = BatchRenderer(renderer), BatchRenderer(renderer)
    assert by_bytes._table is not None
    by_offsets._table = None
    for a, b in zip(by_bytes.encode(chats), by_offsets.encode(chats)):
        assert not isinstance(a, RenderError) and not isinstance(b, RenderError) and same(a, b)


def test_a_tokenizer_that_changes_the_text_is_measured_by_offsets(renderer: Renderer) -> None:
    from tokenizers import normalizers

    tokenizer = copy.deepcopy(renderer.tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    composing = Renderer(tokenizer, max_length=120, date=renderer.date)
    chats = [Chat((Message("user", f"q{i}"), Message("assistant", f"cafe\u0301 {i}")), origin=str(i)) for i in range(6)]
    assert render_batch(composing, chats) == alone(composing, chats)
    for a, b in zip(BatchRenderer(composing).encode(chats), alone(composing, chats)):
        assert not isinstance(a, RenderError) and same(a, encoded(b))


def test_another_text_of_the_same_length_is_measured_by_offsets_too(renderer: Renderer) -> None:
    """One byte less in the question and one more in the answer: what lies between stands elsewhere than the bytes say."""
    from tokenizers import normalizers

    tokenizer = copy.deepcopy(renderer.tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace("zz", "z"), normalizers.Replace("q", "qq")]
    )
    changing = Renderer(tokenizer, max_length=120, date=renderer.date)
    chats = [Chat((Message("user", f"buzz {i}"), Message("assistant", f"so q {i}")), origin=str(i)) for i in range(6)]
    expected = alone(changing, chats)
    assert render_batch(changing, chats) == expected
    for a, b in zip(BatchRenderer(changing).encode(chats), expected):
        assert not isinstance(a, RenderError) and same(a, encoded(b))


def test_byte_fallback_tokens_have_their_bytes() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<0xE4>": 1, "▁a": 2, "b": 3, "<end>": 4}
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<end>"])
    table = ByteTable.of(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert table is not None and table.table == [b"<unk>", b"\xe4", b" a", b"b", b"<end>"]


def test_guards_are_what_a_template_looks_for() -> None:
    guards = guards_of(TEMPLATES["cuts thoughts"])
    assert guards is not None and guards.stop("x</think>y") and guards.stop("a \u2402") and not guards.stop("think")
    assert guards_of("{% if %}") is None


def test_a_batch_renderer_can_be_sent_to_a_worker(renderer: Renderer) -> None:
    chats = simple(8)
    again = pickle.loads(pickle.dumps(BatchRenderer(renderer)))  # noqa: S301
    assert again.render(chats) == alone(renderer, chats)


def slow_square(rows: list[int]) -> list[int]:
    return [r * r for r in rows]


def die(rows: list[int]) -> list[int]:
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    return rows


def refuse(rows: list[int]) -> list[int]:
    raise RenderError(f"row {rows[0]} is not liked", hint="take another")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_order_and_results_do_not_depend_on_workers(count: int) -> None:
    batches = workers.batched(range(50), 7)
    results = [r for _, part in workers.in_order(slow_square, batches, workers=count) for r in part]
    assert results == [i * i for i in range(50)]


def test_a_dead_worker_is_one_message() -> None:
    with pytest.raises(UserError, match="ended unexpectedly"):
        list(workers.in_order(die, workers.batched(range(20), 5), workers=2))


@pytest.mark.parametrize("count", [0, 1])
def test_an_error_in_a_worker_comes_through(count: int) -> None:
    with pytest.raises(RenderError, match="row 0 is not liked") as caught:
        list(workers.in_order(refuse, workers.batched(range(20), 5), workers=count))
    assert caught.value.hint == "take another"


def test_processes_take_over_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do after the second batch here: nothing that was read ahead is lost or done twice."""
    asked: list[int] = []

    def pay(self: Any, rows: int | None) -> bool:
        asked.append(self.done)
        return len(asked) == 2

    monkeypatch.setattr(workers._Meter, "processes_pay", pay)
    monkeypatch.setattr(workers, "worker_count", lambda: 1)
    results = [r for _, part in workers.in_order(slow_square, workers.batched(range(60), 5)) for r in part]
    assert results == [i * i for i in range(60)] and asked == [5, 10]


def test_processes_pay_only_for_many_rows_of_python() -> None:
    """2 cores, 0.2 ms of cores per row: threads do the tokenizer's part as well; where all of it is Python they do not."""
    few, many = 10_000, 1_000_000
    cores = workers._cores()
    assert workers._saved(many, python=1e-4, cpu=2e-4 * cores, workers=cores) <= 0
    if cores > 1:
        assert workers._saved(many, python=2e-3, cpu=2e-3, workers=cores) > workers.START_S
        assert workers._saved(few // 10, python=2e-3, cpu=2e-3, workers=cores) < workers.START_S


def test_time_in_the_tokenizer_is_not_pythons() -> None:
    def work(rows: list[int]) -> list[int]:
        with workers.python_is_free():
            return [sum(range(200_000)) for _ in rows]

    meter, other = workers._Meter(work), workers._Meter(lambda rows: [sum(range(200_000)) for _ in rows])
    for each in (meter, other):
        each([1, 2, 3, 4])
    assert meter.python < other.python / 4


def test_a_senseless_number_of_workers_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_WORKERS", "many")
    with pytest.raises(UserError, match="TUNESMITH_WORKERS is 'many'"):
        list(workers.in_order(slow_square, workers.batched(range(5))))


def chat_like(n: int, capacity: int, seed: int = 0) -> list[int]:
    """Log-normal lengths (median 120 tokens), as conversations have them."""
    drawn = np.random.default_rng(seed).lognormal(4.79, 0.9, n)
    return [int(length) for length in np.clip(np.round(drawn), 8, capacity)]


@pytest.mark.parametrize("capacity", [512, 2048])
@pytest.mark.parametrize("way", [pack, lambda lengths, capacity: list(pack_stream(iter(lengths), capacity))])
def test_bins_are_filled(way: Any, capacity: int) -> None:
    lengths = chat_like(20_000, capacity)
    bins = way(lengths, capacity)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    assert max(sum(lengths[i] for i in b) for b in bins) <= capacity
    assert sum(lengths) / (len(bins) * capacity) >= 0.97


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), max_size=80), capacity=st.integers(1, 32), ahead=st.integers(1, 20))
def test_streamed_packing_keeps_every_row_once(lengths: list[int], capacity: int, ahead: int) -> None:
    bins = list(pack_stream(iter(lengths), capacity, ahead=ahead))
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in b) <= capacity or len(b) == 1 for b in bins)


def test_the_tightest_bin_is_taken() -> None:
    """7 + 3, 6 + 4, not 7, 6 + 3, 4: worked by hand for a capacity of 10."""
    assert pack([3, 4, 6, 7], 10) == [[0, 3], [1, 2]]


def test_streamed_packing_does_not_read_to_the_end_first() -> None:
    read: list[int] = []

    def lengths() -> Iterable[int]:
        for i, length in enumerate(chat_like(5000, 512)):
            read.append(i)
            yield length

    next(pack_stream(lengths(), 512, ahead=256))
    assert len(read) == 256


def test_results_are_json_free_of_surprises(renderer: Renderer) -> None:
    """Tuples of plain integers, as ``render`` gives: numpy's would not be written to JSON."""
    result = render_batch(renderer, simple(6))[5]
    assert isinstance(result, Rendered)
    json.dumps([result.ids, result.mask, result.offsets])
