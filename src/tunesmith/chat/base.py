"""The engine: one small interface over everything that can answer (a model in this process, a GGUF, a server).

An engine knows neither where its weights came from nor what is done with its answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from tunesmith.config.base import Config

if TYPE_CHECKING:
    import numpy as np

Messages = Sequence[dict[str, str]]
"""A conversation in the form every chat template and server takes: ``[{"role": "user", "content": "…"}, …]``."""


class Sampling(Config):
    """How the next token is chosen."""

    max_tokens: int = 256
    """Most tokens of an answer."""
    temperature: float = 0.0
    """0 takes the most likely token each time (greedy, repeatable); higher is freer."""
    top_p: float = 1.0
    """Nucleus sampling: choose among the most likely tokens that together have this probability."""
    seed: int = 0
    """Seed of the random choice when temperature > 0."""


class Engine(Protocol):
    """Something that answers. ``close`` gives its memory back."""

    name: str
    """What it is called in comparisons, for example ``run:demo`` or ``ollama:my-model``."""

    def stream(self, messages: Messages, sampling: Sampling) -> Iterator[str]:
        """The answer, piece by piece; whole characters only."""

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        """Natural-log probabilities of the next token after each position: float32, shape [len(tokens), vocabulary].

        Engines that cannot tell the whole distribution (servers) raise ``UserError``.
        """

    def close(self) -> None:
        """Free what it holds; calling twice is harmless."""


def answer(engine: Engine, messages: Messages, sampling: Sampling) -> str:
    """The whole answer at once."""
    return "".join(engine.stream(messages, sampling))
