"""What lies at an export's place already: taken when it would come out the same, else made anew and exchanged when the new one is whole."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from tunesmith.config.base import Config
from tunesmith.config.errors import ExportError
from tunesmith.config.progress import Progress
from tunesmith.export import record
from tunesmith.export.base import Report, again, alone, exchange, remove, size_of
from tunesmith.export.fingerprint import SMALL, of_folder, programs, sha256_of
from tunesmith.models.adapters.chain import merged_first
from tunesmith.verbs.targets import Target
from tunesmith.verbs.templates import kept_text

FILES = ("imatrix",)
"""Settings that may name a file; in all others a word that happens to be a file's name is a word."""
WORDS = ("auto", "off")
"""In such a setting: no file, even where one has that name."""


def made_from(
    target: Target, plugin: ModuleType, config: Config, calibration: Sequence[Sequence[int]] | None = None
) -> dict[str, Any]:
    """All that decides an export, part by part (``export.record``): plain values, no path of this machine.

    The base, what was learned on it, the run's template, the target with its settings (a file that a setting names by its content),
    the calibration text, and the programs that compute.
    """
    learned = target.learned
    template = kept_text(target.run)
    return {
        "target": plugin.__name__.rpartition(".")[2],
        "base": of_folder(target.base.folder),
        "learned": None
        if learned is None
        else [of_folder(one, small=SMALL) for one in (*merged_first(learned), learned)],
        "template": None if template is None else hashlib.sha256(template.encode()).hexdigest(),
        "settings": settings_of(config),
        "text": None if calibration is None else _text(calibration),
        "programs": programs(*getattr(plugin, "PROGRAMS", ())),
    }


def settings_of(config: Config) -> dict[str, Any]:
    """The settings as plain values; one that names a file (``FILES``) is that file's content, wherever it lies."""
    found = config.model_dump(mode="json")
    for name in FILES:
        value = found.get(name)
        if isinstance(value, str) and value not in WORDS and Path(value).expanduser().is_file():
            found[name] = {"sha256": sha256_of(Path(value).expanduser())}
    return found


@dataclass(frozen=True)
class Taken:
    """``fresh``: it was made by this call."""

    report: Report
    fresh: bool


def taken_or_made(
    place: Path, parts: Mapping[str, Any], make: Callable[[Path], Report], progress: Progress, *, named: bool = False,
    trial: bool = False,
) -> Taken:  # fmt: skip
    """The export at ``place``: the one that is there when it was made from ``parts``, else what ``make(out)`` makes.

    The old one is replaced when the new one is whole; what was not made here, or was changed since, is kept under another name.
    ``named``: the person named the place, so that what lies there is refused instead. ``trial``: it may yet be taken away again
    (``record.on_trial``). Raises ExportError.
    """
    if not place.exists() and not again(place).exists():
        return Taken(_made(place, parts, make, progress, trial), True)
    why = (
        record.difference(place, parts)
        if place.exists()
        else "it was to be replaced when an earlier command was killed"
    )
    if why is None:
        if not trial:
            record.settle(place)
        with contextlib.suppress(ExportError), _alone(place):
            remove(again(place).parent)  # of a command that was to replace it and was interrupted
        return Taken(Report(place, size_of(place), _checks(place)), False)
    if named:
        raise ExportError(
            f"{place} exists already and is not what would be made: {why}",
            hint="remove it, or choose another --out; nothing was changed",
        )
    progress.say(f"{place} is made again: {why}")
    with _alone(place):
        new = again(place)
        if new.exists() and record.difference(new, parts) is None:
            report = Report(new, size_of(new), _checks(new))
        else:
            remove(new)  # whole, of an earlier command, and made from something else
            report = _made(new, parts, make, progress, trial)
        record.note_beside(new, record.beside_of(place))
        kept = exchange(place, keep=record.changed(place, hidden=True) is not None)
    if kept is not None:
        progress.say(f"what was there is kept as {kept}")
    return Taken(replace(report, out=place), True)


def _made(
    out: Path, parts: Mapping[str, Any], make: Callable[[Path], Report], progress: Progress, trial: bool
) -> Report:
    report = make(out)
    record.keep(out, parts, report.checks, progress, trial=trial)
    return report


def _checks(place: Path) -> dict[str, Any]:
    return dict((record.read(place) or {}).get("checks") or {})


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One process at a time replaces ``place``. Raises ExportError."""
    with alone(place.with_name(f".{place.name}.again.lock"), place):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # something is kept in it, to go on with
                again(place).parent.rmdir()


def _text(rows: Sequence[Sequence[int]]) -> str:
    whole = hashlib.sha256()
    for row in rows:
        whole.update(f"{len(row)}:{','.join(map(str, row))};".encode())
    return whole.hexdigest()
