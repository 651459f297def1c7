"""Takes every row through every check: once to look, once more to tell about the rows that a look at the whole found."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np

from tunesmith.config.errors import DataError
from tunesmith.config.plugins import load, names
from tunesmith.config.progress import SILENT, Progress
from tunesmith.data.doctor.base import (
    Check,
    Context,
    Finding,
    Part,
    Row,
    answer_of,
    question_of,
    row_of,
    shorten,
    whole_of,
)
from tunesmith.data.doctor.checks.unread_verdict import verdict_finding
from tunesmith.data.doctor.findings import Findings
from tunesmith.data.doctor.fingerprints import Fingerprints
from tunesmith.data.doctor.sets import Source, place_of, row_estimate
from tunesmith.data.doctor.shape import Shape
from tunesmith.data.example import Feedback, Preference

CHECKS = "tunesmith.data.doctor.checks"
PROBE = 256
"""Rows drawn at random in the first pass, for whoever has to know how long something will take."""
_BATCH = 256
_EVERY = 1000  # rows between two words about the progress


class TokenPass(Protocol):
    """What looks at tokens, in the second pass (``render.token_pass``)."""

    def choose(self, rows: int, probe: Sequence[Row]) -> np.ndarray | None:
        """Which of the training rows to look at (a mask), or None for all; ``probe`` are some of them, drawn at random."""

    def see(self, rows: Sequence[Row]) -> Iterable[tuple[str, Finding]]: ...

    def end(self) -> Iterable[tuple[str, Finding]]: ...


@dataclass(frozen=True)
class Examination:
    """All that was found. ``checks``: by name, those that ran; ``stopped``: why reading ended early, or ""."""

    findings: Findings
    shapes: dict[Part, Shape]
    checks: dict[str, Check]
    rows: int
    counts: dict[Part, list[int]]
    """Rows of each set, in their order."""
    seconds: float
    stopped: str = ""


@dataclass(frozen=True)
class Stage:
    """The stage that the data are meant for: its name, the kind of examples it learns from, and whether a person chose it."""

    name: str
    kind: str
    named: bool


def examine(
    train: Sequence[Source],
    held: Sequence[Source] = (),
    *,
    special_tokens: frozenset[str] | None = None,
    held_out: Callable[[int], frozenset[int]] | None = None,
    tokens: TokenPass | None = None,
    stage: Stage | None = None,
    progress: Progress = SILENT,
) -> Examination:
    """Every check over every row of the training sets ``train`` and the evaluation sets ``held``.

    ``held_out(n)`` are the rows (of n) that the split holds out when there is no evaluation set. Trouble with a file is a finding
    too: what comes after it is not seen, and said so. Memory: 250 to 300 bytes a row at the peak, and the texts of some hundred rows.
    """
    began = time.monotonic()
    prints: dict[Part, Fingerprints] = {"train": Fingerprints(), "eval": Fingerprints()}
    shapes: dict[Part, Shape] = {"train": Shape(), "eval": Shape()}
    kind, name, named = (stage.kind, stage.name, stage.named) if stage is not None else (None, "", False)
    context = Context(prints["train"], prints["eval"], special_tokens, held_out, kind, name, named)
    checks = {name: load(CHECKS, name).Check(context) for name in names(CHECKS)}
    findings = Findings()
    probe: list[Row] = []
    draw = random.Random(0)
    counts: dict[Part, list[int]] = {"train": [0] * len(train), "eval": [0] * len(held)}
    stopped = ""

    def look(part: Part, index: int, place: str, value: object) -> None:
        if isinstance(value, DataError):
            prints[part].append(place)
            shapes[part].unreadable += 1
            return
        row = row_of(index, part, value)  # type: ignore[arg-type]
        _remember(prints[part], row)
        shapes[part].add(row)
        if part == "train" and tokens is not None:
            _draw(probe, row, shapes[part].rows, draw)
        for name, check in checks.items():
            for finding in check.row(row):
                findings.add(name, finding)

    parts: tuple[tuple[Part, Sequence[Source]], ...] = (("eval", held), ("train", train))
    for part, sources in parts:
        try:
            for at, index, place, value in _rows(sources, f"checking {part} rows", progress):
                counts[part][at] += 1
                look(part, index, place, value)
        except DataError as error:
            stopped = f"{error.message}; {len(prints[part]):,} rows were read before it"
            findings.add("unreadable", Finding("error", stopped, error.hint or "mend the file", part=part))
    for source in train:
        if (verdict := getattr(source, "verdict", None)) is not None:
            findings.add("unread_verdict", verdict_finding(source.name, verdict))
    for name, check in checks.items():
        for finding in check.end():
            findings.add(name, finding)
    bad = any(shape.unreadable for shape in shapes.values())
    _again(train, held, checks, tokens, findings, len(prints["train"]), probe, bad, progress)
    seconds = time.monotonic() - began
    return Examination(findings, shapes, checks, sum(map(len, prints.values())), counts, seconds, stopped)


def _remember(prints: Fingerprints, row: Row) -> None:
    compared = "\n".join([p.text for p in row.pieces if p.role != "system"])
    single = not isinstance(row.example, Preference | Feedback)
    answer = answer_of(row.example).strip() if single else ""
    prints.append(row.origin, whole_of(row), question_of(row.example), answer, compared)


def _draw(kept: list[Row], row: Row, seen: int, draw: random.Random) -> None:
    """Reservoir sampling (Vitter's algorithm R, 1985): each row is kept with the same chance."""
    if len(kept) < PROBE:
        kept.append(row)
    elif (place := draw.randrange(seen)) < PROBE:
        kept[place] = row


def _rows(sources: Sequence[Source], task: str, progress: Progress) -> Iterator[tuple[int, int, str, object]]:
    """Set, number (counted through), place and value of every row of several sets; says how far it is."""
    if not sources:
        return
    estimates = [
        row_estimate(getattr(s, "path", None) if isinstance(getattr(s, "path", None), Path) else None) for s in sources
    ]
    total = sum(e for e in estimates if e) if all(estimates) else None
    progress.start(task, total, "rows")
    began, index = time.monotonic(), 0
    for at, source in enumerate(sources):
        for number, value in enumerate(source.examples(), 1):
            place = place_of(value, source.name, number) if isinstance(value, DataError) else value.origin
            yield at, index, place, value
            index += 1
            if index % _EVERY == 0:
                progress.advance(_EVERY, f"{index / max(1e-9, time.monotonic() - began):,.0f} rows/s")
    progress.advance(index % _EVERY)
    progress.finish(f"{index:,} rows, {index / max(1e-9, time.monotonic() - began):,.0f} rows/s")


def _again(
    train: Sequence[Source],
    held: Sequence[Source],
    checks: dict[str, Check],
    tokens: TokenPass | None,
    findings: Findings,
    count: int,
    probe: Sequence[Row],
    bad: bool,
    progress: Progress,
) -> None:
    wanted = {name: np.zeros(count, dtype=bool) for name in checks}
    for name, check in checks.items():
        wanted[name][np.fromiter(check.again_rows(), dtype=np.int64)] = True
    wanted = {name: rows for name, rows in wanted.items() if rows.any()}
    chosen = np.zeros(count, dtype=bool)
    if tokens is not None:
        mask = tokens.choose(count, probe)
        chosen = np.ones(count, dtype=bool) if mask is None else mask
    some = np.logical_or.reduce([chosen, *wanted.values()])
    if not (some.any() or bad or (tokens and held)):
        return
    batch: list[Row] = []

    def flush() -> None:
        if tokens is not None and batch:
            for name, finding in tokens.see(batch):
                findings.add(name, finding, turn=2)
        batch.clear()

    parts: tuple[tuple[Part, Sequence[Source]], ...] = (("eval", held if tokens or bad else ()), ("train", train))
    for part, sources in parts:
        raw = chain.from_iterable(source.raw() for source in sources) if bad else None
        try:
            for _, index, _, value in _rows(sources, f"second look at {part} rows", progress):
                original = next(raw, ("", None))[1] if raw is not None else None
                excerpt = (
                    ""
                    if original is None or isinstance(original, DataError)
                    else shorten(json.dumps(original, ensure_ascii=False, default=str))
                )
                if isinstance(value, DataError):
                    for name, check in checks.items():
                        for finding in check.unread(index, part, value, excerpt):
                            findings.add(name, finding, turn=2)
                    continue
                if part == "train" and not some[index]:
                    continue
                row = row_of(index, part, value)  # type: ignore[arg-type]
                if part == "train":
                    for name, rows in wanted.items():
                        if rows[index]:
                            for finding in checks[name].again(row):
                                findings.add(name, finding, turn=2)
                if tokens is not None and (part == "eval" or chosen[index]):
                    batch.append(row)
                    if len(batch) == _BATCH:
                        flush()
        except DataError:
            pass  # told in the first pass
        flush()
    if tokens is not None:
        for name, finding in tokens.end():
            findings.add(name, finding, turn=3)
