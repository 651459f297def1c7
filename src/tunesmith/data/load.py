"""From names to examples: read, tell the format, convert, join, split. Never a silent skip."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tunesmith.config.errors import DataError
from tunesmith.config.plugins import load as load_plugin
from tunesmith.data.config import DataConfig
from tunesmith.data.detect import FORMATS, detect
from tunesmith.data.example import Chat
from tunesmith.data.registry import DataSet, find
from tunesmith.data.rows import read_rows


@dataclass(frozen=True)
class Loaded:
    """The rows of one data set: those read, and a message for each that could not be."""

    dataset: DataSet
    format: str
    reason: str
    """Why this format was taken."""
    examples: tuple[Chat, ...]
    bad: tuple[DataError, ...] = field(default=())


def load_set(name: str, config: DataConfig) -> Loaded:
    """All rows of one set; bad rows are collected, not dropped silently. Raises DataError when the file is unreadable."""
    dataset = find(name, config.registry)
    limits = [n for n in (dataset.limit, config.limit) if n is not None]
    rows = list(read_rows(dataset.path))
    if not rows:
        raise DataError(f"{dataset.path}: there is no row in it")
    rows = rows[: min(limits)] if limits else rows
    chosen = dataset.formatting or (config.format if config.format != "auto" else None)
    format_name, reason = detect(rows, dataset.fields, chosen)
    convert = load_plugin(FORMATS, format_name).convert
    examples: list[Chat] = []
    bad: list[DataError] = []
    for origin, row in rows:
        try:
            if not isinstance(row, Mapping):
                raise DataError(
                    f"{origin}: expected an object with keys, found {type(row).__name__}: {str(row)[:40]!r}"
                )
            examples.append(convert(row, origin, dataset.fields))
        except DataError as error:
            bad.append(error)
    return Loaded(dataset, format_name, reason, tuple(examples), tuple(bad))


@dataclass(frozen=True)
class Split:
    """Rows to learn from, rows held out, and one line per thing worth knowing."""

    train: tuple[Chat, ...]
    eval: tuple[Chat, ...]
    notes: tuple[str, ...]


def load(config: DataConfig, seed: int) -> Split:
    """Training and evaluation rows of a config. Raises DataError on bad rows unless ``skip_bad``.

    The split depends on the seed and the rows alone.
    """
    notes: list[str] = []
    train = _join(config.train, config, notes)
    held_out = _join(config.eval, config, notes) if config.eval else []
    if not config.eval and config.eval_share > 0:
        order = list(range(len(train)))
        random.Random(seed).shuffle(order)
        count = min(max(1, round(len(train) * config.eval_share)), len(train) - 1)  # one at least, to judge by
        chosen = set(order[:count])
        held_out = [e for i, e in enumerate(train) if i in chosen]
        known = {e.messages for e in held_out}
        rest = [e for i, e in enumerate(train) if i not in chosen]
        train = [e for e in rest if e.messages not in known]
        if len(train) < len(rest):
            notes.append(f"{len(rest) - len(train)} rows equal to held-out ones are not trained on")
    elif held_out:
        known = {e.messages for e in held_out}
        both = sum(e.messages in known for e in train)
        if both:
            notes.append(f"warning: {both} training rows are in the evaluation set too; its loss will look too good")
    return Split(tuple(train), tuple(held_out), tuple(notes))


def _join(set_names: Sequence[str], config: DataConfig, notes: list[str]) -> list[Chat]:
    joined: list[Chat] = []
    for name in set_names:
        loaded = load_set(name, config)
        if loaded.bad and (not config.skip_bad or not loaded.examples):
            raise bad_rows_error(loaded)
        notes.append(f"{name}: {len(loaded.examples)} rows, {loaded.format} ({loaded.reason})")
        notes += [f"left out: {error.message}" for error in loaded.bad]
        joined += loaded.examples
    return joined


def bad_rows_error(loaded: Loaded) -> DataError:
    """One message for all the bad rows of a set: the first few in full and how many there are."""
    shown = "\n".join(f"  {e.message}" for e in loaded.bad[:3])
    more = f"\n  … and {len(loaded.bad) - 3} more" if len(loaded.bad) > 3 else ""
    total = len(loaded.bad) + len(loaded.examples)
    return DataError(
        f"{loaded.dataset.path}: {len(loaded.bad)} of {total} rows cannot be read as {loaded.format}:\n{shown}{more}",
        hint="; ".join(dict.fromkeys(e.hint for e in loaded.bad[:3] if e.hint))
        + ("; " if any(e.hint for e in loaded.bad[:3]) else "")
        + "mend them, or leave them out with data.skip_bad=true; `tunesmith data check` lists all",
    )
