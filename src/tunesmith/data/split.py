"""Which rows are learned in which order and which are held out: decided by numbers and hashes alone, no row is seen here."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.config.errors import DataError
from tunesmith.data.config import DataConfig
from tunesmith.data.mix import order

Place = tuple[int, int]
"""(set, row of that set)"""


@dataclass(frozen=True)
class Plan:
    """``train``: places in the training sets, one epoch in its order. ``eval``: places in the evaluation sets of the config,
    or in the training sets when there is none. ``notes``: one line per thing worth knowing."""

    train: list[Place]
    eval: list[Place]
    notes: tuple[str, ...]


def plan(train: Sequence[Sequence[bytes]], held: Sequence[Sequence[bytes]], config: DataConfig, seed: int) -> Plan:
    """``train`` and ``held``: the identity (``data.identity``) of every row of every training and evaluation set.

    The result depends on them, the seed and the config alone. Rows are held out before weights and mixing, so that a row that
    comes twice in an epoch is never on both sides; weights and mixing choose among the rows that are left.
    """
    notes: list[str] = []
    kept: list[list[int]] = [list(range(len(rows))) for rows in train]
    out = [(i, row) for i, rows in enumerate(held) for row in range(len(rows))]
    if config.eval:
        known = {identity for rows in held for identity in rows}
        both = sum(identity in known for rows in train for identity in rows)
        if both:
            notes.append(f"warning: {both} training rows are in the evaluation set too; its loss will look too good")
    else:
        out = _held_out([len(rows) for rows in train], config.eval_share, seed)
        known = {train[i][row] for i, row in out}
        chosen = set(out)
        rest = [[row for row in rows if (i, row) not in chosen] for i, rows in enumerate(kept)]
        kept = [[row for row in rows if train[i][row] not in known] for i, rows in enumerate(rest)]
        twice = sum(map(len, rest)) - sum(map(len, kept))
        if twice:
            notes.append(f"{twice} rows equal to held-out ones are not trained on")
    places = order(
        [len(rows) for rows in kept], [choice.weight for choice in config.train], mix=config.mix,
        probabilities=config.probabilities, stop=config.stop, seed=seed,
    )  # fmt: skip
    there = sum(len(rows) for rows in kept)
    empty = next((i for i, rows in enumerate(kept) if not rows), None)
    if empty is not None and not places and there:
        raise DataError(
            f"data: no row of {config.train[empty]} is left to train on (held out, or equal to held-out rows)",
            hint="lower data.eval_share, or mix with data.stop=all_exhausted or data.mix=concat",
        )
    if len(train) > 1 or len(places) != there:
        notes.append(f"{len(places)} rows per epoch, {len(set(places))} of {there} different ones ({config.mix})")
    return Plan([(i, kept[i][row]) for i, row in places], out, tuple(notes))


def _held_out(counts: Sequence[int], share: float, seed: int) -> list[Place]:
    """A random ``share`` of all rows in their order; at least one, to judge by, and never all."""
    chosen = held_out_numbers(sum(counts), share, seed)
    places: list[Place] = []
    before = 0
    for i, count in enumerate(counts):
        places += [(i, row) for row in range(count) if before + row in chosen]
        before += count
    return places


def held_out_count(total: int, share: float) -> int:
    """How many of ``total`` rows are held out for evaluation."""
    return max(0, min(max(1, round(total * share)), total - 1)) if share > 0 else 0


def held_out_numbers(total: int, share: float, seed: int) -> frozenset[int]:
    """The rows (0, 1, … over all training sets) that are held out."""
    numbers = list(range(total))
    random.Random(seed).shuffle(numbers)
    return frozenset(numbers[: held_out_count(total, share)])
