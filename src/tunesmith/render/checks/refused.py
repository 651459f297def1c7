"""Rows that the chat template refuses, or that do not fit ``data.max_length`` even after dropping turns."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.config.errors import RenderError
from tunesmith.data.doctor.base import Finding, Row
from tunesmith.render.checks import base


class Check(base.Check):
    """Every ``RenderError``: training would stop at it."""

    title = "rows that cannot be rendered for this model"
    mends = "drops the row"

    def refused(self, row: Row, error: RenderError) -> Iterable[Finding]:
        message = error.message.removeprefix(f"{row.origin}: ")
        yield row.finding("error", message, error.hint or "change the row, or leave it out", fix="drop")
