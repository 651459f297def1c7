"""Is a server's model, which tells only its most likely tokens, nearer to one distribution or to another? Knows no server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MOST = 200
"""So many of the likely tokens of each distribution are known by their text."""


@dataclass(frozen=True)
class Asked:
    """A prompt of ``tokens`` tokens and the natural-log probabilities [vocabulary] of what follows, by two models."""

    prompt: str
    tokens: int
    trained: np.ndarray
    base: np.ndarray
    ids: Mapping[bytes, tuple[int, ...]] = field(default_factory=dict)
    """Likely tokens by their bytes; several where one text is several tokens."""

    def with_pieces(self, piece: Callable[[int], str]) -> Asked:
        """The same with ``ids`` filled in; ``piece`` spells a token."""
        likely = {int(i) for one in (self.trained, self.base) for i in one.argsort()[-MOST:]}
        found: dict[bytes, tuple[int, ...]] = {}
        for token in sorted(likely):
            key = piece(token).encode("utf-8")
            found[key] = (*found.get(key, ()), token)
        return replace(self, ids=found)


def distances(asked: Asked, told: Sequence[tuple[bytes, float]]) -> tuple[list[float], list[float], list[float]]:
    """|log p − log q| in nats for each token the server ``told`` (bytes, natural-log probability) whose text names one token:
    server to trained model, server to base, trained model to base."""
    to_trained, to_base, between = [], [], []
    for text, value in told:
        ids = asked.ids.get(text, ())
        if len(ids) != 1:
            continue
        trained, base = float(asked.trained[ids[0]]), float(asked.base[ids[0]])
        to_trained.append(abs(value - trained))
        to_base.append(abs(value - base))
        between.append(abs(trained - base))
    return to_trained, to_base, between
