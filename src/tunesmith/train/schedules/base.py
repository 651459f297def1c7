"""The protocol of a schedule: one file per shape, a ``Config`` with ``kind`` and the shape itself. No state, so that a
resumed run has nothing to restore there."""

from __future__ import annotations

from typing import Protocol


class Schedule(Protocol):
    """The shape of the learning rate after the warm-up."""

    def factor(self, done: int, total: int) -> float:
        """Share of the peak at the step before which ``done`` (0 … total - 1) of the ``total`` steps after the warm-up are done."""
