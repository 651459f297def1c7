"""From names to examples: every set read, bad rows counted and named, split, mixed. Never a silent skip."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from tunesmith.config.errors import DataError
from tunesmith.config.progress import SILENT, Progress
from tunesmith.data.config import DataConfig, SetConfig
from tunesmith.data.example import Example
from tunesmith.data.identity import identity
from tunesmith.data.mix import order
from tunesmith.data.opened import OpenSet, open_set

__all__ = ["Loaded", "OpenSet", "Split", "bad_rows_error", "load", "load_set", "open_set"]


@dataclass(frozen=True)
class Loaded:
    """The rows of one data set: those read, and a message for each that could not be."""

    dataset: OpenSet
    examples: tuple[Example, ...]
    bad: tuple[DataError, ...] = field(default=())

    @property
    def format(self) -> str:
        return self.dataset.format

    @property
    def reason(self) -> str:
        """Why this format was taken."""
        return self.dataset.reason


def load_set(choice: SetConfig | str, config: DataConfig, progress: Progress = SILENT) -> Loaded:
    """All rows of one set; bad rows are collected, not dropped silently. Raises DataError when the file is unreadable."""
    opened = open_set(choice, config, progress)
    examples: list[Example] = []
    bad: list[DataError] = []
    for value in opened.examples():
        if isinstance(value, DataError):
            bad.append(value)
        else:
            examples.append(value)
    return Loaded(opened, tuple(examples), tuple(bad))


@dataclass(frozen=True)
class Split:
    """Rows to learn from, rows held out, and one line per thing worth knowing."""

    train: tuple[Example, ...]
    eval: tuple[Example, ...]
    notes: tuple[str, ...]


def load(config: DataConfig, seed: int, progress: Progress = SILENT) -> Split:
    """Training and evaluation rows of a config. Raises DataError on bad rows unless ``skip_bad``.

    The result depends on the seed, the config and the rows alone. Rows are held out before weights and mixing, so that a row
    that comes twice in an epoch is never on both sides; weights and mixing choose among the rows that are left.
    """
    notes: list[str] = []
    sets = _read(config.train, config, notes, progress)
    held_out = [example for rows in _read(config.eval, config, notes, progress) for example in rows]
    if config.eval:
        known = {identity(e) for e in held_out}
        both = sum(identity(e) in known for rows in sets for e in rows)
        if both:
            notes.append(f"warning: {both} training rows are in the evaluation set too; its loss will look too good")
    elif config.eval_share > 0:
        sets, held_out = _hold_out(sets, config.eval_share, seed, notes)
    places = order(
        [len(rows) for rows in sets], [choice.weight for choice in config.train], mix=config.mix,
        probabilities=config.probabilities, stop=config.stop, seed=seed,
    )  # fmt: skip
    train = tuple(sets[i][row] for i, row in places)
    there = sum(len(rows) for rows in sets)
    if len(sets) > 1 or len(train) != there:
        notes.append(f"{len(train)} rows per epoch, {len(set(places))} of {there} different ones ({config.mix})")
    return Split(train, tuple(held_out), tuple(notes))


def _hold_out(
    sets: list[list[Example]], share: float, seed: int, notes: list[str]
) -> tuple[list[list[Example]], list[Example]]:
    """``share`` of all rows, one at least, and the sets without them and without rows equal to them."""
    total = sum(len(rows) for rows in sets)
    numbers = list(range(total))
    random.Random(seed).shuffle(numbers)
    chosen = set(numbers[: min(max(1, round(total * share)), total - 1)])  # one at least, to judge by
    held_out: list[Example] = []
    rest: list[list[Example]] = [[] for _ in sets]
    number = 0
    for i, rows in enumerate(sets):
        for example in rows:
            (held_out if number in chosen else rest[i]).append(example)
            number += 1
    known = {identity(e) for e in held_out}
    kept = [[e for e in rows if identity(e) not in known] for rows in rest]
    twice = sum(map(len, rest)) - sum(map(len, kept))
    if twice:
        notes.append(f"{twice} rows equal to held-out ones are not trained on")
    return kept, held_out


def _read(
    choices: Sequence[SetConfig], config: DataConfig, notes: list[str], progress: Progress
) -> list[list[Example]]:
    sets: list[list[Example]] = []
    for choice in choices:
        loaded = load_set(choice, config, progress)
        if loaded.bad and (not config.skip_bad or not loaded.examples):
            raise bad_rows_error(loaded)
        notes.append(f"{choice}: {len(loaded.examples)} rows, {loaded.format} ({loaded.reason})")
        notes += loaded.dataset.notes
        notes += [f"left out: {error.message}" for error in loaded.bad]
        sets.append(list(loaded.examples))
    return sets


def bad_rows_error(loaded: Loaded) -> DataError:
    """One message for all the bad rows of a set: the first few in full and how many there are."""
    shown = "\n".join(f"  {e.message}" for e in loaded.bad[:3])
    more = f"\n  … and {len(loaded.bad) - 3} more" if len(loaded.bad) > 3 else ""
    total = len(loaded.bad) + len(loaded.examples)
    return DataError(
        f"{loaded.dataset.place}: {len(loaded.bad)} of {total} rows cannot be read as {loaded.format}:\n{shown}{more}",
        hint="; ".join(dict.fromkeys(e.hint for e in loaded.bad[:3] if e.hint))
        + ("; " if any(e.hint for e in loaded.bad[:3]) else "")
        + "mend them, or leave them out with data.skip_bad=true; `tunesmith data check` lists all",
    )
