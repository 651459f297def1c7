"""The loss of engines on held-out conversations, so that models with other tokenizers are not compared by what cannot be compared.

A loss per token means something between models that cut text into the same tokens. For others there is the loss per byte of the text that is
to be learned: every model is charged for the whole of it, however it is cut (bits per byte, as in Gao et al., 2020, arXiv:2101.00027, 3.1).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.chat.base import Engine, NoDistributionError
from tunesmith.config.errors import RenderError, UserError
from tunesmith.data.example import Chat
from tunesmith.render.conversation import Rendered, Renderer


@dataclass(frozen=True)
class Loss:
    """``loss``: mean of -log p over the learned tokens in nats, None when the engine's tokens are others than the first model's.
    ``bits_per_byte``: of the learned text. ``why``: the reason when a figure is missing."""

    loss: float | None = None
    bits_per_byte: float | None = None
    tokens: int = 0
    why: str = ""


@dataclass(frozen=True)
class HeldOut:
    """``rows`` and how the first model's renderer reads them (``rendered``; alone: for models of one tokenizer). Rows that were shortened to fit are measured only
    for models that read the same tokens. ``learn``: which turns are learned."""

    rows: tuple[Chat, ...] = ()
    rendered: tuple[Rendered, ...] = ()
    learn: str = "answers"

    @staticmethod
    def of(rows: Sequence[Chat], renderer: Renderer) -> HeldOut:
        return HeldOut(tuple(rows), tuple(renderer.render(row) for row in rows), renderer.learn)

    def measure(self, engine: Engine) -> Loss:
        """The engine's loss, on the rows as its own tokenizer and template read them. Raises UserError for rows without learned tokens."""
        if not self.rendered:
            return Loss()
        try:
            rows, same = self._read_by(engine)
        except RenderError as error:
            return Loss(why=f"its chat template cannot hold the rows: {error.message}")
        if rows is None:
            return Loss(why="its tokenizer reads the rows otherwise")
        try:
            total, tokens = total_loss(engine, rows)
        except NoDistributionError:
            return Loss(why="a server tells no distributions")
        reference = self.rendered if same else [r for r in self.rendered if not r.dropped_turns]
        size = sum(learned_bytes(row) for row in reference)
        return Loss(total / tokens if same else None, total / math.log(2) / size if size else None, tokens)

    def _read_by(self, engine: Any) -> tuple[Sequence[Rendered] | None, bool]:
        """The rows as the engine's own tokenizer reads them, and whether these are the first model's tokens. None: not known."""
        if not self.rows:
            return self.rendered, True
        renderer, tokenize = getattr(engine, "renderer", None), getattr(engine, "tokenize", None)
        if renderer is not None:
            mine = copy.copy(renderer)
            mine.learn = self.learn
            own = [mine.render(row) for row in self.rows]
            if all((a.ids, a.mask) == (b.ids, b.mask) for a, b in zip(own, self.rendered)):
                return self.rendered, True
            mine.max_length = None
            kept = [row for row, first in zip(self.rows, self.rendered) if not first.dropped_turns]
            return [mine.render(row) for row in kept], False
        if tokenize is not None:
            same = all(tuple(tokenize(row.text)) == tuple(row.ids) for row in self.rendered)
            return (self.rendered, True) if same else (None, False)
        return self.rendered, True  # a server: it refuses at the first row


def learned_bytes(row: Rendered) -> int:
    """UTF-8 bytes of the text that the learned tokens of a row stand for (characters that several tokens share count once)."""
    learned = {i for (a, b), flag in zip(row.offsets, row.mask) if flag for i in range(a, b)}
    return len("".join(row.text[i] for i in sorted(learned)).encode("utf-8", "surrogatepass"))


def total_loss(engine: Engine, rows: Sequence[Rendered]) -> tuple[float, int]:
    """Sum of -log p(x_t | x_<t) over the learned tokens of all rows (nats), and how many tokens that is. Raises UserError."""
    import numpy as np

    total, count = 0.0, 0
    for row in rows:
        logprobs = engine.logprobs(row.ids)
        learned = np.flatnonzero(np.asarray(row.mask[1:]))
        targets = np.asarray(row.ids[1:])[learned]
        total -= float(logprobs[learned, targets].astype(np.float64).sum())
        count += len(learned)
    if count == 0:
        raise UserError("the held-out rows have no learned token")
    return total, count
