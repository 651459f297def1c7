"""How fast training is, how long it still takes, and what share of the device's arithmetic it uses."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

STEPS = 20
"""Steps that the speed is averaged over."""


class Meter:
    """``tokens``: those still to come. ``flops``: per token, ``peak``: per second, 0 = not known. Real tokens count, padding does not."""

    def __init__(self, tokens: int, flops: float = 0.0, peak: float = 0.0) -> None:
        self.left, self.flops, self.peak = tokens, flops, peak
        self._recent: deque[tuple[int, float]] = deque(maxlen=STEPS)
        self._mark = time.monotonic()

    def step(self, tokens: int) -> None:
        """One step of so many tokens is done."""
        now = time.monotonic()
        self._recent.append((tokens, now - self._mark))
        self._mark = now
        self.left -= tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside (evaluating, saving) does not count as training."""
        before = time.monotonic()
        try:
            yield
        finally:
            self._mark += time.monotonic() - before

    @property
    def speed(self) -> float:
        """Tokens per second over the last steps."""
        seconds = sum(s for _, s in self._recent)
        return sum(t for t, _ in self._recent) / seconds if seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float:
        """Without evaluations and saving."""
        return max(0, self.left) / self.speed if self.speed else 0.0

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilization (Chowdhery et al., 2022, arXiv:2204.02311, appendix B); None when the device's peak is not known."""
        return self.speed * self.flops / self.peak if self.peak and self.flops else None
