"""The doctor's look at tokens: renders all rows when that is quick, else a sample that is named as such."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tunesmith.config.errors import RenderError
from tunesmith.config.plugins import load, names
from tunesmith.config.progress import SILENT, Progress
from tunesmith.data.doctor.base import Finding, Row
from tunesmith.render.batch import BatchRenderer
from tunesmith.render.checks.base import Check, TokenContext
from tunesmith.render.conversation import Renderer
from tunesmith.render.sides import Side, all_sides
from tunesmith.render.stop import end_of_turn_token

CHECKS = "tunesmith.render.checks"
SAMPLE = 20_000
"""Rows rendered when all would take too long."""
PATIENCE = 60.0
"""Seconds that rendering everything may take."""


class TokenPass:
    """``data.doctor.examine.TokenPass`` for one renderer. ``full``: all rows, however long that takes.

    ``lengths`` and ``learned`` are tokens per rendered training row (the longer side of a pair, and both sides' learned tokens);
    ``rows`` of ``of`` training rows were looked at.
    """

    def __init__(self, renderer: Renderer, *, full: bool = False, seed: int = 0, progress: Progress = SILENT) -> None:
        self.renderer, self.full, self.seed, self.progress = renderer, full, seed, progress
        self.context = TokenContext(renderer.max_length, end_of_turn_token(renderer))
        self.checks: dict[str, Check] = {name: load(CHECKS, name).Check(self.context) for name in names(CHECKS)}
        self.lengths, self.learned, self.tokens = array("I"), array("I"), array("I")
        self.rows = self.of = 0
        self.render = BatchRenderer(renderer).render

    def choose(self, rows: int, probe: Sequence[Row]) -> np.ndarray | None:
        """All rows when the measured rate allows it, else a sample drawn with the seed."""
        self.of = rows
        if self.full or rows <= SAMPLE // 10 or not probe:
            return None
        self._sides(probe[:16])  # the first renderings compile the template
        began = time.monotonic()
        self._sides(probe)
        rate = len(probe) / max(1e-9, time.monotonic() - began)
        if rows <= SAMPLE or rows / rate <= PATIENCE:
            return None
        self.progress.say(
            f"rendering all {rows:,} rows would take {rows / rate / 60:.0f} minutes at {rate:,.0f} rows/s: "
            f"{SAMPLE:,} of them are drawn at random (--full renders all)"
        )
        mask = np.zeros(rows, dtype=bool)
        mask[np.random.default_rng(self.seed).choice(rows, SAMPLE, replace=False)] = True
        return mask

    def _sides(self, rows: Sequence[Row]) -> list[tuple[Side, ...] | RenderError]:
        return all_sides(self.renderer, [row.example for row in rows], self.render)

    def see(self, rows: Sequence[Row]) -> Iterable[tuple[str, Finding]]:
        """Render some rows and take them through the checks."""
        for row, result in zip(rows, self._sides(rows)):
            self.rows += row.part == "train"
            if isinstance(result, RenderError):
                for name, check in self.checks.items():
                    yield from ((name, finding) for finding in check.refused(row, result))
                continue
            if row.part == "train":
                self.lengths.append(max(len(side.rendered.ids) for side in result))
                self.tokens.append(sum(len(side.rendered.ids) for side in result))
                self.learned.append(sum(sum(side.rendered.mask[1:]) for side in result))
            for name, check in self.checks.items():
                yield from ((name, finding) for finding in check.row(row, result))

    def end(self) -> Iterable[tuple[str, Finding]]:
        """Findings about the set as a whole."""
        for name, check in self.checks.items():
            yield from ((name, finding) for finding in check.end())
        if self.rows and not self.lengths:
            yield (
                "refused",
                Finding("error", "no row can be rendered with this model's chat template", "name another model"),
            )

    def summary(self) -> dict[str, Any]:
        """Figures of the token lengths, in tokens; empty when nothing could be rendered."""
        if not self.lengths:
            return {"rendered_rows": self.rows, "of_rows": self.of}
        lengths = np.array(self.lengths)
        quantiles = {f"p{q}": int(np.percentile(lengths, q)) for q in (50, 90, 99)}
        total = int(np.array(self.tokens, dtype=np.int64).sum())
        learned = int(np.array(self.learned, dtype=np.int64).sum())
        return {
            "rendered_rows": self.rows, "of_rows": self.of, "min": int(lengths.min()), **quantiles,
            "max": int(lengths.max()), "total": total, "learned": learned, "learned_share": learned / max(1, total),
            "max_length": self.context.max_length,
        }  # fmt: skip


def special_tokens_of(tokenizer: Any) -> frozenset[str]:
    """The control tokens of a tokenizer in their written form."""
    added = {str(t) for t in tokenizer.added_tokens_decoder.values() if getattr(t, "special", False)}
    return frozenset({str(t) for t in tokenizer.all_special_tokens} | added)
