"""The engine: one small interface over everything that can answer (a model in this process, a GGUF, a server).

An engine knows neither where its weights came from nor what is done with its answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from tunesmith.config.base import Config, setting
from tunesmith.config.errors import UserError

if TYPE_CHECKING:
    import numpy as np

Messages = Sequence[dict[str, str]]
"""A conversation in the form every chat template and server takes: ``[{"role": "user", "content": "…"}, …]``."""


class NoDistributionError(UserError):
    """An engine that cannot tell the probabilities of every token, whatever it is asked (a server)."""


class Sampling(Config):
    """How the next token is chosen."""

    max_tokens: int = setting(256, zh="回答最多生成的 token 数。", ge=1)
    """Most tokens of an answer."""
    temperature: float = setting(0.0, zh="0 表示每次取概率最大的 token（贪心，可复现）；越大越自由。", ge=0)
    """0 takes the most likely token each time (greedy, repeatable); higher is freer."""
    top_p: float = setting(1.0, zh="核采样：只在累计概率达到该值的 token 中选取。", gt=0, le=1)
    """Nucleus sampling: choose among the most likely tokens that together have this probability."""
    seed: int = setting(0, zh="temperature > 0 时随机选取的种子。")
    """Seed of the random choice when temperature > 0."""


class Engine(Protocol):
    """Something that answers. ``close`` gives its memory back."""

    name: str
    """What it is called in comparisons, for example ``run:demo`` or ``ollama:my-model``."""

    def stream(self, messages: Messages, sampling: Sampling) -> Iterator[str]:
        """The answer, piece by piece; whole characters only."""

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        """Natural-log probabilities of the next token after each position: float32, shape [len(tokens), vocabulary].

        Engines that cannot tell the whole distribution (servers) raise ``NoDistributionError``.
        """

    def close(self) -> None:
        """Free what it holds; calling twice is harmless."""


def answer(engine: Engine, messages: Messages, sampling: Sampling) -> str:
    """The whole answer at once."""
    return "".join(engine.stream(messages, sampling))
