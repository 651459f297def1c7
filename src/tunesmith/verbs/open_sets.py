"""Opened sets of a config: rows as often as wanted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.config.errors import DataError
from tunesmith.config.plugins import load as load_plugin
from tunesmith.data.config import DataConfig
from tunesmith.data.example import Example
from tunesmith.data.load import FORMATS, _detect
from tunesmith.data.registry import DataSet, find
from tunesmith.data.rows import read_rows


@dataclass(frozen=True)
class OpenSet:
    """Stand-in until data.load.open_set."""

    dataset: DataSet
    name: str
    path: Path
    format: str
    reason: str
    limit: int | None

    @property
    def place(self) -> str:
        return str(self.path)

    def raw(self) -> Iterator[tuple[str, Any]]:
        return islice(_rows(self.path), self.limit)

    def examples(self) -> Iterator[Example | DataError]:
        convert = load_plugin(FORMATS, self.format).convert
        for origin, row in self.raw():
            try:
                if not isinstance(row, dict):
                    raise DataError(f"{origin}: expected an object with keys, found {type(row).__name__}")
                yield convert(row, origin, self.dataset.fields)
            except DataError as error:
                yield error


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix != ".jsonl":
        yield from read_rows(path)
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield f"{path}:{number}", json.loads(line)
                except ValueError as error:
                    raise DataError(f"{path}:{number}: not valid JSON: {error}") from None


def open_set(choice: str, config: DataConfig) -> OpenSet:
    dataset = find(choice, config.registry)
    limits = [n for n in (dataset.limit, config.limit) if n is not None]
    limit = min(limits) if limits else None
    first = list(islice(_rows(dataset.path), 100))
    if not first:
        raise DataError(f"{dataset.path}: there is no row in it")
    chosen = dataset.formatting or (config.format if config.format != "auto" else None)
    name, reason = (chosen, "it was named") if chosen else _detect(first, dataset)
    return OpenSet(dataset, choice, dataset.path, name, reason, limit)
