"""A few positions of a comparison, with what two models tell there: kept to be compared with a server, which tells only some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from tunesmith.chat.base import Engine, Messages, Sampling

KEPT = 3
"""Distributions at so many positions of each sequence are kept, for comparisons with a server."""


@dataclass(frozen=True)
class Position:
    """What stands after ``ids``: natural-log probabilities [vocabulary] of the merged model, and of the GGUF in llama.cpp."""

    ids: tuple[int, ...]
    merged: np.ndarray
    file: np.ndarray


class Keeping:
    """An engine of which the distributions at a few positions of each sequence are kept, evenly over its second half (where answers are)."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.name = engine, engine.name
        self.rows: dict[tuple[int, ...], dict[int, np.ndarray]] = {}

    def stream(self, messages: Messages, sampling: Sampling) -> Iterator[str]:
        """The engine's own answer."""
        return self.engine.stream(messages, sampling)

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        """The engine's distributions: float32, [len(tokens), vocabulary]."""
        found = self.engine.logprobs(tokens)
        last, half = len(tokens) - 1, len(tokens) // 2
        ends = sorted({half + (last - half) * (k + 1) // KEPT for k in range(KEPT)} - {0})
        self.rows[tuple(tokens)] = {at: found[at].copy() for at in ends}
        return found

    def close(self) -> None:
        """Close the engine; what was kept stays."""
        self.engine.close()


def kept_positions(merged: Engine, file: Keeping, sequences: Sequence[tuple[int, ...]]) -> list[Position]:
    """The positions kept of ``file``, with what the merged model tells there."""
    return [
        Position(ids[: at + 1], merged.logprobs(ids)[at].copy(), row)
        for ids in sequences
        for at, row in file.rows[ids].items()
    ]
