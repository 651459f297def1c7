"""Which rows are held out and learned: numbers and hashes alone, checked against the rules written out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.config.errors import DataError
from tunesmith.data.config import DataConfig
from tunesmith.data.split import held_out_count, plan


def rows(*identities: int) -> list[bytes]:
    return [bytes([i]) * 16 for i in identities]


@given(
    st.lists(st.lists(st.integers(0, 30), max_size=20), min_size=1, max_size=4), st.floats(0, 0.9), st.integers(0, 9)
)
def test_no_held_out_row_nor_its_like_is_learned(sets: list[list[int]], share: float, seed: int) -> None:
    """Of N rows max(1, round(share N)) are held out (never all), over all sets alike; what equals one of them is not learned,
    and every other row comes once, in its order."""
    data = DataConfig.model_validate({"train": [f"s{i}" for i in range(len(sets))], "eval_share": share})
    identities = [rows(*one) for one in sets]
    planned = plan(identities, [], data, seed)
    total = sum(map(len, sets))
    assert len(planned.eval) == held_out_count(total, share) <= max(0, total - 1)
    held = {identities[i][row] for i, row in planned.eval}
    everything = [(i, row) for i, one in enumerate(identities) for row in range(len(one))]
    assert planned.train == [(i, row) for i, row in everything if identities[i][row] not in held]
    assert set(planned.eval) <= set(everything) and planned == plan(identities, [], data, seed)


def test_rows_are_held_out_of_every_set() -> None:
    data = DataConfig.model_validate({"train": ["a", "b", "c"], "eval_share": 0.5})
    planned = plan([rows(*range(k, k + 20)) for k in (0, 40, 80)], [], data, 1)
    assert {i for i, _ in planned.eval} == {0, 1, 2} and len(planned.eval) == len(planned.train) == 30


def test_weights_belong_to_their_sets() -> None:
    sets = [{"set": "a", "weight": 2}, {"set": "b", "weight": 0.5}, "c"]
    data = DataConfig.model_validate({"train": sets, "eval_share": 0})
    planned = plan([rows(*range(10)), rows(*range(20, 30)), rows(*range(40, 50))], [], data, 1)
    assert [sum(i == k for i, _ in planned.train) for k in range(3)] == [20, 5, 10]


def test_an_evaluation_set_of_ones_own_is_compared_by_identity() -> None:
    data = DataConfig.model_validate({"train": ["a"], "eval": ["b"]})
    planned = plan([rows(1, 2, 3)], [rows(3, 4)], data, 0)
    assert planned.train == [(0, 0), (0, 1), (0, 2)] and planned.eval == [(0, 0), (0, 1)]
    assert planned.notes == ("warning: 1 training rows are in the evaluation set too; its loss will look too good",)


def test_a_set_without_rows_left_is_named() -> None:
    data = DataConfig.model_validate({"train": ["a", "b"], "mix": "interleave", "eval_share": 0.3})
    with pytest.raises(DataError, match="no row of b is left"):
        plan([rows(1, 2, 3, 4, 5, 6), rows()], [], data, 0)
