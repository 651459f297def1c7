"""The protocol of a stage: how an example becomes a batch and a batch becomes a loss. The loop knows nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tunesmith.render.packing import pack

if TYPE_CHECKING:
    import torch

    from tunesmith.data.example import Example


class Item(Protocol):
    """An encoded example."""

    @property
    def length(self) -> int:
        """Tokens it takes in a batch."""

    @property
    def weight(self) -> float:
        """What its loss is normalized by, in the unit of the stage (learned tokens, pairs …)."""

    @property
    def origin(self) -> str:
        """``file:row``, for messages."""


@dataclass(frozen=True)
class Loss:
    """``total``: scalar, the sum over the batch, differentiable. ``weight``: what the sum is to be divided by.

    The loop divides by the weight of the *whole* optimizer step, so that 8 micro-batches of 1 equal 1 of 8.
    ``metrics``: name -> (sum, count).
    """

    total: torch.Tensor
    weight: float
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)


class Stage(Protocol):
    """One file in ``stages/`` has a ``Config`` (with ``kind``) and a ``build(config, renderer) -> Stage``."""

    def encode(self, example: Example) -> Item:
        """Raises RenderError when the example cannot be encoded."""

    def collate(self, items: Sequence[Any], *, packed: bool) -> Any:
        """One micro-batch: several items in one row without padding (``packed``), or one row each."""

    def loss(self, model: Any, batch: Any) -> Loss:
        """Forward pass and loss of one micro-batch, moved to the model's device."""


def micro_batches(items: Sequence[Item], capacity: int, *, packed: bool) -> list[list[int]]:
    """Indices of ``items`` per micro-batch: packed bins, or runs of rows whose padded size stays below ``capacity``."""
    lengths = [item.length for item in items]
    if packed:
        return pack(lengths, capacity)
    groups: list[list[int]] = []
    for i in sorted(range(len(items)), key=lambda k: (-lengths[k], k)):
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and longest * (len(groups[-1]) + 1) <= capacity:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
