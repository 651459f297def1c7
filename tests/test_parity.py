"""The figures of the parity check, derived by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from tunesmith.chat.base import Messages, Sampling
from tunesmith.config.errors import UserError
from tunesmith.evaluate.parity import compare_distributions, parity
from tunesmith.evaluate.served import lower_bound


class Table:
    """An engine whose distribution after token t is row t of a table."""

    name = "table"

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows
        self.asked: list[int] = []

    def stream(self, messages: Messages, sampling: Sampling) -> Iterator[str]:
        raise NotImplementedError

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        self.asked.append(len(tokens))
        return self.rows[list(tokens)]

    def close(self) -> None: ...


def test_two_coins() -> None:
    """p = (1/2, 1/2), q = (1/4, 3/4): KL = ½ ln 2 + ½ ln(2/3) = ½ ln(4/3) = 0.143841 nats; argmax of p is 0, of q is 1."""
    found = compare_distributions(np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]]))
    assert found.mean_kl == pytest.approx(0.5 * math.log(4 / 3), rel=1e-12)
    assert found.top1_agreement == 0.0
    assert found.positions == 1


def test_direction_is_reference_to_other() -> None:
    """The other way round: KL(q ‖ p) = ¼ ln ½ + ¾ ln(3/2) = 0.130812 nats, another number."""
    found = compare_distributions(np.log([[0.25, 0.75]]), np.log([[0.5, 0.5]]))
    assert found.mean_kl == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-12)


def test_equal_is_zero_and_rows_need_not_be_normalized() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 1000)).astype(np.float32) * 5
    found = compare_distributions(rows, rows + np.float32(3.0))
    assert found.max_kl < 1e-12
    assert found.top1_agreement == 1.0


def test_tiny_distances_are_not_lost_in_noise() -> None:
    """q = p + ε·(+1, −1)/2 has KL = ε²/2·(…) ≈ ε² / 2 for p = (½, ½): with ε = 1e-6, 5e-13."""
    eps = 1e-6
    found = compare_distributions(np.log([[0.5, 0.5]]), np.log([[0.5 + eps / 2, 0.5 - eps / 2]]))
    assert found.mean_kl == pytest.approx(eps**2 / 2, rel=1e-3)


def test_mean_percentile_maximum_over_many_positions() -> None:
    """Row i of 101: p = (½, ½), q = (½ e^{-a}, 1 − ½ e^{-a}); more positions than a chunk, each with its known KL."""
    a = np.linspace(0, 1, 101)
    q = np.stack([0.5 * np.exp(-a), 1 - 0.5 * np.exp(-a)], -1)
    expected = 0.5 * np.log(0.5 / q[:, 0]) + 0.5 * np.log(0.5 / q[:, 1])
    found = compare_distributions(np.log(np.full((101, 2), 0.5)), np.log(q))
    assert found.mean_kl == pytest.approx(expected.mean(), rel=1e-9)
    assert found.p95_kl == pytest.approx(np.sort(expected)[95], rel=1e-9)
    assert found.max_kl == pytest.approx(expected.max(), rel=1e-9)
    assert found.positions == 101


def test_impossible_tokens() -> None:
    """Never in p: p = (1, 0), q = (½, ½) gives ln 2. Never in q: infinite."""
    with np.errstate(divide="ignore"):
        sure, even = np.log([[1.0, 0.0]]), np.log([[0.5, 0.5]])
    assert compare_distributions(sure, even).mean_kl == pytest.approx(math.log(2))
    assert compare_distributions(even, sure).mean_kl == math.inf
    assert compare_distributions(even, sure).p95_kl == math.inf


def test_engines_are_asked_sequence_by_sequence() -> None:
    rows = np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    other = np.log(np.array([[0.25, 0.75], [0.9, 0.1]]))
    reference = Table(rows)
    found = parity(reference, Table(other), iter([[0, 1, 1], [1]]))
    assert reference.asked == [3, 1]
    assert found.positions == 4
    assert found.mean_kl == pytest.approx(0.5 * math.log(4 / 3) / 4)
    assert found.top1_agreement == 1.0 - (1 / 4)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4))),
        (np.zeros((0, 3)), np.zeros((0, 3))),
        (np.full((1, 2), np.nan), np.zeros((1, 2))),
    ],
)
def test_what_cannot_be_compared_is_an_error(first: np.ndarray, second: np.ndarray) -> None:
    with pytest.raises(UserError):
        compare_distributions(first, second)
    with pytest.raises(UserError):
        parity(Table(first), Table(first), [])


def test_a_bound_from_the_most_likely_tokens() -> None:
    """p = (1/2, 1/4, 1/8, 1/8), q tells token 0: 1/4 and token 1: 1/4, so its rest is 1/2 and p's is 1/4:
    KL >= 1/2 ln 2 + 1/4 ln 1 + 1/4 ln(1/2) = 1/4 ln 2 = 0.173287 nats."""
    reference = np.log([0.5, 0.25, 0.125, 0.125])
    kl, same = lower_bound(reference, [([0], math.log(0.25)), ([1], math.log(0.25))])
    assert kl == pytest.approx(0.25 * math.log(2), rel=1e-9)
    assert same
    assert not lower_bound(reference, [([1], math.log(0.5))])[1]


def test_tokens_of_one_text_are_one_outcome() -> None:
    """Tokens 2 and 3 of p = (1/2, 1/4, 1/8, 1/8) look the same: together 1/4. Told as 1/4, nothing differs."""
    reference = np.log([0.5, 0.25, 0.125, 0.125])
    assert lower_bound(reference, [([0], math.log(0.5)), ([2, 3], math.log(0.25))])[0] == pytest.approx(0, abs=1e-9)


def test_the_bound_never_exceeds_the_whole() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        p, q = (random.normal(size=200) * 3 for _ in range(2))
        q -= np.log(np.exp(q).sum())
        top = np.argsort(-q)[:20]
        found, _ = lower_bound(p, [([int(i)], float(q[i])) for i in top])
        whole = compare_distributions(p[None], q[None]).mean_kl
        assert 0 <= found <= whole + 1e-9
        every, _ = lower_bound(p, [([int(i)], float(q[i])) for i in range(200)])
        assert every == pytest.approx(whole, rel=1e-4)
    with pytest.raises(UserError, match="told no probabilities"):
        lower_bound(p, [([], 0.0)])
