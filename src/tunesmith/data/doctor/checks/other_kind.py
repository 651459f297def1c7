"""Rows of a kind that the stage does not learn from: pairs for fine-tuning, plain text for conversations."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.config.errors import DataError
from tunesmith.data.adapt import adapt, kind_of
from tunesmith.data.doctor import base
from tunesmith.data.example import KINDS


class Check(base.Check):
    """One finding for each kind. An error where the stage was named, since training would stop; else a warning: another stage may
    be meant."""

    title = "rows for another stage"

    def __init__(self, context: base.Context) -> None:
        super().__init__(context)
        self.counts: dict[tuple[base.Part, str], int] = {}
        self.first: dict[tuple[base.Part, str], tuple[base.Row, DataError]] = {}

    def row(self, row: base.Row) -> Iterable[base.Finding]:
        wanted = self.context.kind
        if wanted is None or isinstance(row.example, KINDS[wanted]):
            return ()
        try:
            adapt(row.example, wanted)
        except DataError as error:
            key = (row.part, kind_of(row.example))
            self.counts[key] = self.counts.get(key, 0) + 1
            self.first.setdefault(key, (row, error))
        return ()

    def end(self) -> Iterable[base.Finding]:
        severity: base.Severity = "error" if self.context.stage_named else "warning"
        for (part, kind), count in self.counts.items():
            row, error = self.first[part, kind]
            many = f"{count:,} rows are {kind} examples" if count > 1 else f"1 row is a {kind} example"
            message = f"{many}; the stage {self.context.stage} learns from {self.context.kind} examples"
            yield base.Finding(
                severity, message, error.hint or "take another set", row.origin, part=part, row=row.index
            )
