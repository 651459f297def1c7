"""Which rows each step learns, counted in rows or in tokens, and how many steps that makes: here and in the doctor's words."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tunesmith.train.order import Order
from tunesmith.verbs.data_steps import steps_of
from tunesmith.verbs.run_config import load_config

LENGTHS = np.random.default_rng(0).integers(5, 400, 103).tolist()


@pytest.mark.parametrize("batch_tokens", [None, 900])
def test_every_row_once_an_epoch(batch_tokens: int | None) -> None:
    order, other = Order(LENGTHS, 8, 7, batch_tokens), Order(LENGTHS, 8, 8, batch_tokens)
    seen = [order.rows(step) for step in range(1, order.total(3) + 1)]
    ends = [i + 1 for i in range(len(seen)) if order.ends_epoch(i + 1)]
    assert len(ends) == 3 and ends[-1] == len(seen)
    for begin, end in zip([0, *ends], ends):
        assert sorted(i for rows in seen[begin:end] for i in rows) == list(range(103))
    assert seen[0] != seen[ends[0]] and seen[0] != other.rows(1)
    assert [round(order.epoch(end), 9) for end in ends] == [1, 2, 3]
    tokens = [sum(LENGTHS[i] for i in rows) for rows in seen]
    assert [order.tokens(0, step) for step in range(len(seen) + 1)] == [0, *np.cumsum(tokens)]
    if batch_tokens:
        assert max(tokens) <= batch_tokens
        for rows, following in itertools.pairwise(seen):
            full = sum(LENGTHS[i] for i in rows) + LENGTHS[following[0]] > batch_tokens
            assert full or order.ends_epoch(seen.index(rows) + 1), "a step that still had room"
    else:
        assert {len(rows) for rows in seen} == {8, 7}


def test_asked_in_any_order_the_answer_is_the_same() -> None:
    forward = Order(LENGTHS, 8, 7, 900)
    steps = range(1, forward.total(4) + 1)
    expected = [forward.rows(step) for step in steps]
    late = Order(LENGTHS, 8, 7, 900)
    assert [late.rows(step) for step in reversed(steps)] == expected[::-1]


def test_a_row_longer_than_the_budget_is_a_step_of_its_own() -> None:
    order = Order([10, 500, 10], 1, 0, 100)
    assert sorted(len(order.rows(step)) for step in range(1, order.total(1) + 1)) in ([1, 2], [1, 1, 1])


@pytest.mark.parametrize("batch_tokens", [None, 900])
@pytest.mark.parametrize("limit", [1, 5000, 20_000, 60_001])
def test_the_limit_in_tokens_ends_with_the_step_that_reaches_it(batch_tokens: int | None, limit: int) -> None:
    order = Order(LENGTHS, 8, 7, batch_tokens)
    total = order.total(1.0, None, limit)
    assert order.tokens(0, total - 1) < limit <= order.tokens(0, total)
    assert order.total(1.0, 3, limit) == min(3, total)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train.batch_tokens=900"], "train.batch_tokens=900 = {} steps"),
        (["train.max_tokens=5000"], "train.max_tokens=5000 = {} steps"),
        (["train.batch_tokens=900", "train.max_tokens=5000"], "= {} steps"),
        (["train.batch=8"], "/ 8 = {} steps"),
    ],
)
def test_the_doctor_counts_the_steps_that_training_takes(settings: list[str], words: str) -> None:
    run = load_config(None, ["model=demo", "data=x", "data.eval_share=0", *settings])
    loop = run.train
    steps = Order(LENGTHS, loop.batch, loop.seed, loop.batch_tokens).total(3, loop.max_steps, loop.max_tokens)
    assert words.format(steps) in steps_of(run, 103, [103], lengths=LENGTHS).line()
    if "tokens" in settings[0]:
        assert "name a model" in steps_of(run, 103, [103]).line()
        assert "about " in steps_of(run, 1030, [1030], lengths=LENGTHS).line(), "a sample of the rows"
