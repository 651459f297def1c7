"""The protocol of a stage: how an example becomes a batch and a batch becomes a loss. The loop knows nothing else of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tunesmith.config.errors import UserError
from tunesmith.render.packing import pack
from tunesmith.render.store import Layout

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
    ``metrics``: name -> (sum, count), for example ``accuracy``; a sum may be a scalar tensor, so that a GPU need not be waited for.
    """

    total: torch.Tensor
    weight: float
    metrics: Mapping[str, tuple[float | torch.Tensor, float]] = field(default_factory=dict)


class Generate(Protocol):
    """What a verb hands in: the model as it is now continues prompts."""

    def __call__(self, prompts: Sequence[Sequence[int]]) -> Sequence[str]:
        """The continuation of each prompt (token ids) as text, up to an end of turn. The most likely tokens are taken."""


class Stage(Protocol):
    """One file in ``stages/`` has a ``Config`` (with ``kind``) and a ``build(config, renderer) -> Stage``.

    A stage can be pickled: worker processes encode with a copy of it.
    """

    @property
    def layout(self) -> Layout:
        """How an item is kept on disk."""

    def encode(self, example: Example) -> Item:
        """Raises RenderError when the example cannot be encoded."""

    def encode_many(self, examples: Sequence[Example]) -> Sequence[Item | UserError]:
        """``encode`` of each, or the error it raises; ``each`` does for stages without a quicker way. Thread-safe."""

    def collate(self, items: Sequence[Any], *, packed: bool) -> Any:
        """One micro-batch: several items in one row without padding (``packed``), or one row each."""

    def loss(self, model: Any, batch: Any) -> Loss:
        """Forward pass and loss of one micro-batch, moved to the model's device."""


def each(encode: Callable[[Example], Item], examples: Sequence[Example]) -> list[Item | UserError]:
    """One by one, errors as values."""
    results: list[Item | UserError] = []
    for example in examples:
        try:
            results.append(encode(example))
        except UserError as error:
            results.append(error)
    return results


def lengths_of(items: Sequence[Item]) -> list[int]:
    """Tokens of each item; a store (``render.store``) tells them without making the items."""
    known = getattr(items, "lengths", None)
    return np.asarray(known).tolist() if known is not None else [item.length for item in items]


def micro_batches(items: Sequence[Item], capacity: int, *, packed: bool) -> list[list[int]]:
    """Indices of ``items`` per micro-batch: packed bins, or runs of rows whose padded size stays below ``capacity``."""
    lengths = lengths_of(items)
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
