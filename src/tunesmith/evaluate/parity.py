"""Are two engines the same model? The distance between their next-token distributions, position by position.

Knows neither files nor libraries: it is given engines (or their distributions) and token ids.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from tunesmith.chat.base import Engine, Messages, Sampling

CHUNK = 16
"""Positions compared at once: the float64 copies stay small (16 × 152k × 8 B = 19 MB each) beside the distributions."""


@dataclass(frozen=True)
class Parity:
    """How far the other engine is from the reference, over all positions.

    ``mean_kl``, ``p95_kl`` (95th percentile, linear interpolation) and ``max_kl`` are KL divergences in nats (0 = equal);
    ``top1_agreement`` is the share of positions (0..1) where both find the same token most likely.
    """

    mean_kl: float
    p95_kl: float
    max_kl: float
    top1_agreement: float
    positions: int

    def as_dict(self) -> dict[str, float | int]:
        """The figures by name, for reports."""
        return asdict(self)


def compare_distributions(reference_logprobs: np.ndarray, other_logprobs: np.ndarray) -> Parity:
    """Compare two arrays of natural-log probabilities, each [positions, vocabulary].

    Per position, with p the reference and q the other (Kullback and Leibler, 1951):

        KL(p ‖ q) = Σ_v p_v (log p_v − log q_v)        nats

    Each row is normalized again in float64 first (rows from float32 sum to 1 ± 1e-6, and the error would be a KL of its own), and
    the sum is taken as Σ p_v (e^d − 1 − d) with d = log q_v − log p_v. For normalized rows this is the same number, but every
    term is ≥ 0, so that nearly equal distributions give a small KL and not the noise of cancelling terms. A token that p
    never gives (−inf) adds q_v; one that p gives and q never gives makes the KL infinite.

    Raises UserError for different shapes, no positions, or not-a-number.
    """
    kl, agree = per_position(reference_logprobs, other_logprobs)
    return _summary([kl], [agree])


def parity(reference: Engine, other: Engine, token_sequences: Iterable[Sequence[int]]) -> Parity:
    """Run both engines over each sequence of token ids and compare every position. One sequence is in memory at a time.

    Raises UserError when there is nothing to compare or the engines' vocabularies differ in size.
    """
    kls, agrees = [], []
    for tokens in token_sequences:
        kl, agree = per_position(reference.logprobs(tokens), other.logprobs(tokens))
        kls.append(kl)
        agrees.append(agree)
    return _summary(kls, agrees)


class Remembered:
    """An engine that runs each sequence once and remembers what it told: for several comparisons with one reference.

    ``folder``: where that lies in files without a name, which are gone with this object; without it, or without room, in memory.
    ``slack``: mean KL (nats) that the numbers it was computed in may add; ``how`` it was computed, in words.
    """

    def __init__(self, engine: Engine, folder: Path | None = None, *, slack: float = 0.0, how: str = "") -> None:
        self.engine, self.name, self._folder = engine, engine.name, folder
        self.slack, self.how = slack, how
        self._known: dict[tuple[int, ...], np.ndarray] = {}

    def stream(self, messages: Messages, sampling: Sampling) -> Iterator[str]:
        """The engine's own answer."""
        return self.engine.stream(messages, sampling)

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        """The engine's distributions: float32, [len(tokens), vocabulary]."""
        key = tuple(tokens)
        if key not in self._known:
            found = self.engine.logprobs(key)
            self._known[key] = found if self._folder is None else _on_disk(found, self._folder)
        return self._known[key]

    def close(self) -> None:
        """Close the engine and forget."""
        self._known.clear()
        self.engine.close()


def _on_disk(found: np.ndarray, folder: Path) -> np.ndarray:
    """The same array, read from a file in ``folder`` when it is asked for; as it is when nothing can be written there."""
    import numpy as np

    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(np.ascontiguousarray(found).data.cast("B"))
            file.flush()
            return np.memmap(file, found.dtype, "r", shape=found.shape)
    except OSError:
        return found


def per_position(reference: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """KL [positions] and agreement [positions]."""
    import numpy as np

    if reference.ndim != 2 or reference.shape != other.shape:
        raise UserError(
            f"distributions of shape {reference.shape} and {other.shape} cannot be compared",
            hint="both must be [positions, vocabulary] over the same tokens and the same vocabulary",
        )
    kl, agree = np.empty(len(reference)), np.empty(len(reference), bool)
    for start, log_p, log_q in _chunks(reference, other):
        if np.isnan(log_p).any() or np.isnan(log_q).any():
            raise UserError("a distribution holds not-a-number", hint="the model's weights may be damaged")
        end = start + len(log_p)
        agree[start:end] = log_p.argmax(-1) == log_q.argmax(-1)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            p, d = np.exp(log_p), log_q - log_p
            terms = p * (np.expm1(d) - d)
            terms = np.where(p > 0, terms, np.exp(log_q))
        kl[start:end] = terms.sum(-1)
    return kl, agree


def _chunks(reference: np.ndarray, other: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    import numpy as np

    def normalized(part: np.ndarray) -> np.ndarray:
        rows = part.astype(np.float64)
        top = rows.max(-1, keepdims=True)
        return rows - (top + np.log(np.exp(rows - top).sum(-1, keepdims=True)))

    for start in range(0, len(reference), CHUNK):
        part = slice(start, start + CHUNK)
        yield start, normalized(reference[part]), normalized(other[part])


def _summary(kls: list[np.ndarray], agrees: list[np.ndarray]) -> Parity:
    import numpy as np

    kl = np.concatenate(kls) if kls else np.empty(0)
    if not len(kl):
        raise UserError("there is no position to compare", hint="give at least one sequence of one token")
    return Parity(
        mean_kl=float(kl.mean()),
        p95_kl=float(np.percentile(kl, 95)) if np.isfinite(kl).all() else float(np.sort(kl)[int(0.95 * (len(kl) - 1))]),
        max_kl=float(kl.max()),
        top1_agreement=float(np.concatenate(agrees).mean()),
        positions=len(kl),
    )
