"""In which order the rows of several sets are learned, and how often: numbers only, no row is seen here."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence


def order(
    counts: Sequence[int],
    weights: Sequence[float] = (),
    *,
    mix: str = "concat",
    probabilities: Sequence[float] = (),
    stop: str = "first_exhausted",
    seed: int = 0,
) -> list[tuple[int, int]]:
    """(set, row) of one epoch, for sets of ``counts`` rows. The arguments decide alone, whoever reads the rows.

    A set of weight w gives every row floor(w) times and a random share w - floor(w) of the rows once more. ``concat``: set
    after set, rows in order. ``interleave``: one row of each set in turn, or of a set drawn with ``probabilities``, until
    the first set has no row left (``first_exhausted``), or until each had none left once; those used up earlier start
    again (``all_exhausted``). As in ``datasets.interleave_datasets``.
    """
    pools = [
        _weighted(count, weights[i] if weights else 1.0, random.Random(f"{seed}/weight/{i}"))
        for i, count in enumerate(counts)
    ]
    if mix == "concat" or len(pools) == 1:
        return [(i, row) for i, pool in enumerate(pools) for row in pool]
    full = [i for i, pool in enumerate(pools) if pool]
    if not full or (len(full) < len(pools) and stop == "first_exhausted"):
        return []
    chances = [probabilities[i] for i in full] if probabilities else ()
    turns = _interleaved([pools[i] for i in full], chances, stop == "all_exhausted", random.Random(f"{seed}/mix"))
    return [(full[i], row) for i, row in turns]


def _weighted(count: int, weight: float, chance: random.Random) -> list[int]:
    times = int(weight)
    more = round((weight - times) * count)
    rows = list(range(count)) * times
    return rows + sorted(chance.sample(range(count), more)) if more else rows


def _interleaved(
    pools: Sequence[Sequence[int]], probabilities: Sequence[float], all_of_them: bool, chance: random.Random
) -> Iterator[tuple[int, int]]:
    at = [0] * len(pools)
    used_up: set[int] = set()
    turn = 0
    while True:
        if probabilities:
            chosen = chance.choices(range(len(pools)), probabilities)[0]
        else:
            chosen, turn = turn, (turn + 1) % len(pools)
        yield chosen, pools[chosen][at[chosen] % len(pools[chosen])]
        at[chosen] += 1
        if at[chosen] == len(pools[chosen]):
            used_up.add(chosen)
        if len(used_up) >= (len(pools) if all_of_them else 1) and turn == 0:  # a round is finished
            return
