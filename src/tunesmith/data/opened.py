"""One data set, found and its format told: its rows and examples can be read as often as wanted, always in the same order."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

from tunesmith.config.code import code_of
from tunesmith.config.errors import DataError
from tunesmith.config.plugins import load as load_plugin
from tunesmith.config.progress import SILENT, Progress
from tunesmith.data.columns import FieldMap
from tunesmith.data.config import DataConfig, SetConfig
from tunesmith.data.detect import FORMATS, detect
from tunesmith.data.example import Example
from tunesmith.data.files.base import Options, Rows
from tunesmith.data.registry import Entry, check_names, lookup
from tunesmith.data.rows import Note, first_rows, read_part
from tunesmith.data.sources import Source, exists, locate, unknown
from tunesmith.data.unread import said, unread_columns, verdict_of

HEAD = 200
"""So many rows are read to tell the format and to check the columns."""
WATCHED = 50
"""So many rows are watched for columns that are not read."""
JUDGED = ("alpaca", "completion", "openai", "sharegpt")
"""Formats whose answers may have a verdict beside them (``kto_tag``)."""
SAMPLE_SEED = 0


@dataclass(frozen=True)
class OpenSet:
    """``name`` as the person wrote it, ``place`` where its rows are; ``notes`` what is worth knowing about the files."""

    name: str
    place: str
    format: str
    reason: str
    """Why this format was taken."""
    fields: FieldMap
    source: Source
    options: Options
    limit: int | None = None
    sample: int | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)
    verdict: str | None = field(default=None, compare=False)
    """A column that is not read and seems to tell good answers from bad ones."""

    @property
    def path(self) -> Path | None:
        """The file or folder of this disk; None for hubs and patterns."""
        path = Path(self.place)
        return path if path.exists() else None

    def raw(self) -> Rows:
        """``(origin, row)`` of every row that is taken; a DataError stands for a row that could not be read.

        Raises DataError or ServerError when a file as a whole cannot be read on.
        """
        return islice(self._all() if self.sample is None else self._sampled(self.sample), self.limit)

    def examples(self) -> Iterator[Example | DataError]:
        """One value per row of ``raw``, in its order: the example, or what is wrong with the row. Raises as ``raw``."""
        convert = load_plugin(FORMATS, self.format).convert
        for origin, row in self.raw():
            try:
                if isinstance(row, DataError):
                    raise row
                if not isinstance(row, Mapping):
                    raise DataError(
                        f"{origin}: expected an object with keys, found {type(row).__name__}: {str(row)[:40]!r}",
                        hint='a row is an object such as {"instruction": "…", "output": "…"}',
                    )
                yield convert(row, origin, self.fields)
            except DataError as error:
                yield error

    def fingerprint(self) -> str:
        """SHA-256 over the contents of the files (or a hub's hash or commit and path) and all that changes the examples."""
        said = {
            "code": code_of("data"), "files": [part.digest() for part in self.source.parts], "format": self.format,
            "columns": dict(self.fields.columns), "tags": dict(self.fields.tags), "ranking": self.fields.ranking,
            "limit": self.limit, "sample": self.sample, "field": self.options.field, "text_unit": self.options.text_unit,
            "suffixes": [part.suffix for part in self.source.parts],
        }  # fmt: skip
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()

    def _all(self) -> Rows:
        for part in self.source.parts:
            yield from read_part(part, self.options)

    @cached_property
    def _taken(self) -> Counter[int]:
        """row number -> how often the sample takes it. LLaMA-Factory's ``num_samples``: drawn without repetition, and what
        is missing drawn again; here with a seed of its own, so that a set has the same sample in every run."""
        count = sum(1 for _ in self._all())
        chance = random.Random(SAMPLE_SEED)
        wanted = self.sample or 0
        taken = Counter(chance.sample(range(count), min(wanted, count)))
        taken.update(chance.choices(range(count), k=wanted - count) if 0 < count < wanted else ())
        return taken

    def _sampled(self, wanted: int) -> Rows:
        if self.source.remote:  # its length is not known before it is read
            yield from islice(self._all(), wanted)
            return
        for number, item in enumerate(self._all()):
            for _ in range(self._taken[number]):
                yield item


def open_set(choice: SetConfig | str, config: DataConfig, progress: Progress = SILENT) -> OpenSet:
    """Find a set, fetch it when it is on a hub, and tell its format from its first rows; it is not read to its end.

    Raises DataError (nothing there, unreadable, empty, no format fits, columns that are not there), ReferenceNotFoundError
    and ServerError (hubs).
    """
    choice = SetConfig(set=choice) if isinstance(choice, str) else choice
    entry = lookup(choice.set, config.registry)
    if entry is None and not exists(choice.set):
        raise unknown(choice.set, config.registry)
    check_names(choice.columns, choice.tags, f"data: {choice.set}")
    notes: list[str] = []
    choice, named = _with_entry(choice, entry)
    source = locate(choice, entry, notes.append, progress)
    options = Options(choice.field or source.field, choice.text_unit)
    fields = FieldMap(choice.columns, choice.tags, choice.ranking)
    head = first_rows(_rows(source, options, notes.append), HEAD)
    if not head:
        raise DataError(
            f"{source.place}: there is no row in it", hint="was it written to its end? it should hold at least one row"
        )
    if named is None and config.format != "auto":
        named = config.format
    readable = [(origin, row) for origin, row in head if not isinstance(row, DataError)]
    if not readable:
        raise head[0][1]
    format_name, reason = detect(readable, fields, named)
    plugin = load_plugin(FORMATS, format_name)
    verdict = None
    if unread := unread_columns(readable[:WATCHED], plugin.convert, fields):
        verdicts = format_name in JUDGED
        notes.append(said(source.place, unread, verdicts=verdicts))
        verdict = verdict_of(unread) if verdicts else None
    if choice.sample is not None and source.remote:
        notes.append(f"{source.place}: is read over the net, so the first {choice.sample} rows are taken, not a sample")
    limits = [n for n in (choice.limit, config.limit) if n is not None]
    return OpenSet(
        choice.set, source.place, format_name, reason, fields, source, options, min(limits, default=None), choice.sample,
        tuple(dict.fromkeys(notes)), verdict,
    )  # fmt: skip


def _rows(source: Source, options: Options, note: Note) -> Rows:
    for part in source.parts:
        yield from read_part(part, options, note)


def _with_entry(choice: SetConfig, entry: Entry | None) -> tuple[SetConfig, str | None]:
    """The choice filled up from the registered entry (what the choice says itself wins), and the format that was named."""
    named = choice.format if choice.format != "auto" else None
    if entry is None:
        return choice, named
    filled = {
        "subset": choice.subset or entry.subset,
        "split": choice.split or entry.split,
        "folder": choice.folder or entry.folder,
        "sample": choice.sample or entry.sample,
        "columns": {**entry.columns, **choice.columns},
        "tags": {**entry.tags, **choice.tags},
        "ranking": choice.ranking or entry.ranking,
    }
    return choice.model_copy(update=filled), named or entry.format
