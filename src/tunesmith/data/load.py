"""From names to examples: every set read, bad rows counted and named, split, mixed. Never a silent skip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tunesmith.config.errors import DataError
from tunesmith.config.progress import SILENT, Progress
from tunesmith.data.adapt import adapt
from tunesmith.data.config import DataConfig, SetConfig
from tunesmith.data.example import Example
from tunesmith.data.identity import identity
from tunesmith.data.opened import OpenSet, open_set
from tunesmith.data.split import plan

__all__ = ["Loaded", "OpenSet", "Split", "bad_rows_error", "examples_of", "load", "load_set", "open_set"]


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


def load_set(
    choice: SetConfig | str, config: DataConfig, progress: Progress = SILENT, *, kind: str | None = None
) -> Loaded:
    """All rows of one set; bad rows are collected, not dropped silently. Raises DataError when the file is unreadable."""
    opened = open_set(choice, config, progress)
    examples: list[Example] = []
    bad: list[DataError] = []
    for value in examples_of(opened, kind):
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


def load(config: DataConfig, seed: int, progress: Progress = SILENT, *, kind: str | None = None) -> Split:
    """Training and evaluation rows of a config, all in memory, as examples of ``kind`` (``data.example.KINDS``) if one is named.

    Raises DataError on bad rows unless ``skip_bad``. Which rows are held out is decided by ``data.split.plan``.
    """
    notes: list[str] = []
    train, held = (_read(choices, config, notes, progress, kind) for choices in (config.train, config.eval))
    identities = [[[identity(e) for e in rows] for rows in sets] for sets in (train, held)]
    planned = plan(identities[0], identities[1], config, seed)
    source = held if config.eval else train
    return Split(
        tuple(train[i][row] for i, row in planned.train),
        tuple(source[i][row] for i, row in planned.eval),
        (*notes, *planned.notes),
    )


def _read(
    choices: Sequence[SetConfig], config: DataConfig, notes: list[str], progress: Progress, kind: str | None
) -> list[list[Example]]:
    sets: list[list[Example]] = []
    for choice in choices:
        loaded = load_set(choice, config, progress, kind=kind)
        if loaded.bad and (not config.skip_bad or not loaded.examples):
            raise bad_rows_error(loaded.dataset, loaded.bad, len(loaded.examples) + len(loaded.bad))
        notes.append(f"{choice}: {len(loaded.examples)} rows, {loaded.format} ({loaded.reason})")
        notes += loaded.dataset.notes
        notes += [f"left out: {error.message}" for error in loaded.bad]
        sets.append(list(loaded.examples))
    return sets


def examples_of(opened: OpenSet, kind: str | None) -> Iterator[Example | DataError]:
    """The examples of a set as ``kind``; the error in place of each that cannot be read, or cannot be one."""
    for value in opened.examples():
        if kind is None or isinstance(value, DataError):
            yield value
            continue
        try:
            yield adapt(value, kind)
        except DataError as error:
            yield error


def bad_rows_error(opened: OpenSet, bad: Sequence[DataError], total: int) -> DataError:
    """One message for all the bad rows of a set of ``total``: the first few in full and how many there are."""
    shown = "\n".join(f"  {e.message}" for e in bad[:3])
    more = f"\n  … and {len(bad) - 3} more" if len(bad) > 3 else ""
    return DataError(
        f"{opened.place}: {len(bad)} of {total} rows cannot be used (format {opened.format}):\n{shown}{more}",
        hint="; ".join(dict.fromkeys(e.hint for e in bad[:3] if e.hint))
        + ("; " if any(e.hint for e in bad[:3]) else "")
        + ("mend them, or leave them out with data.skip_bad=true" if len(bad) < total else "none is left to learn from")
        + "; `tunesmith data check` lists all",
    )
