"""What a check of rendered rows is given and gives back. Like ``data.doctor.base``, with tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from tunesmith.config.errors import RenderError
from tunesmith.data.doctor.base import Finding, Row
from tunesmith.render.sides import Side


@dataclass(frozen=True)
class TokenContext:
    """``max_length`` in tokens (None = no limit); ``end_of_turn``: what the template puts after an answer, id and text."""

    max_length: int | None
    end_of_turn: tuple[int, str] | None


class Check:
    """Override what is needed. ``row`` is given every row that could be rendered, ``refused`` the others."""

    title: ClassVar[str]
    mends: ClassVar[str] = "leaves it"

    def __init__(self, context: TokenContext) -> None:
        self.context = context

    def row(self, row: Row, sides: tuple[Side, ...]) -> Iterable[Finding]:
        return ()

    def refused(self, row: Row, error: RenderError) -> Iterable[Finding]:
        return ()

    def end(self) -> Iterable[Finding]:
        return ()
