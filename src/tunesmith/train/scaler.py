"""Dynamic loss scaling for fp16, whose smallest number is 6e-8: smaller gradients would become zero (Micikevicius et al.,
2017, arXiv:1710.03740).

The loss is multiplied by ``scale`` before the backward pass and the gradients are divided by it in fp32. When they overflow,
the step is skipped and the scale halved; after ``interval`` good steps in a row it is doubled (the rule and the numbers of
``torch.amp.GradScaler``). The scale is a power of two, so that scaling itself never rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.config.errors import TrainingError
from tunesmith.stages.base import Item

MOST_SKIPPED = 24
"""Skipped steps in a row that end the run: by then the scale has fallen from 65,536 below 1/100, and it is not at fault."""


class LossScaler:
    """The scale and what decides its next value; ``skipped`` and ``in_a_row`` count steps that were not taken."""

    def __init__(
        self, scale: float = 2.0**16, *, growth: float = 2.0, backoff: float = 0.5, interval: int = 2000
    ) -> None:
        self.scale, self.growth, self.backoff, self.interval = scale, growth, backoff, interval
        self.good = self.skipped = self.in_a_row = 0

    def update(self, finite: bool, step: int) -> None:
        """After optimizer step ``step``, whose gradients were ``finite`` or not. Raises TrainingError after too many skips."""
        if finite:
            self.good, self.in_a_row = self.good + 1, 0
            if self.good == self.interval:
                self.scale, self.good = self.scale * self.growth, 0
            return
        self.scale, self.good = self.scale * self.backoff, 0
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row >= MOST_SKIPPED:
            raise TrainingError(
                f"the gradients were too large for fp16 in {self.in_a_row} steps in a row, up to step {step}, "
                f"even with the loss scaled by {self.scale:.1e}",
                hint="this model needs the range of precision=bf16 or fp32; if it learned well before, train.lr is too high",
            )

    def said(self, step: int) -> str:
        """What to tell about the step that was just skipped."""
        return f"step {step} skipped: its gradients overflowed in fp16; the loss scale is now {self.scale:g}"

    def figures(self) -> dict[str, Any]:
        """For the metrics of a step."""
        return {"loss_scale": self.scale, "skipped": self.in_a_row > 0}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {key: getattr(self, key) for key in ("scale", "good", "skipped", "in_a_row")}

    def load(self, state: dict[str, Any]) -> None:
        """Bring ``state()`` back."""
        for key, value in state.items():
            setattr(self, key, value)


def forward_overflow(value: float, step: int, rows: Sequence[Item]) -> TrainingError:
    """The error for a loss that is not finite in fp16: no scale helps when the forward pass itself overflows."""
    origins = ", ".join(row.origin for row in rows[:3]) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")
    return TrainingError(
        f"the loss became {value} at step {step} (rows {origins}); training stopped",
        hint="in fp16 no number above 65,504 can be computed, and some models need larger ones: "
        "precision=bf16 or precision=fp32; if it learned well before, go on with a smaller learning rate: tunesmith runs continue RUN train.lr=…",
    )
