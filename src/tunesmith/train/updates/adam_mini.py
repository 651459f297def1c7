"""Adam-mini (Zhang et al., 2024, arXiv:2406.16793): Adam with one second moment for each dense block of the Hessian.

v_b <- beta2 v_b + (1 - beta2) mean(g_b^2), the mean taken over the block b. The paper's partition for transformers: queries and
keys by head, embedding and output layer by token (a row), other matrices by output neuron (a row), any other tensor whole.
Kept: the first moment and one number per block, half of Adam's.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from tunesmith.train.updates.base import PerTensor, count_step, moment, move
from tunesmith.train.updates.roles import owner

BY_HEAD = {"q_proj", "k_proj", "wq", "wk", "query", "key"}
"""What models call the projections to queries and keys where each has its own; fused ones are taken row by row."""


class AdamMini(PerTensor):
    """One second moment per head, row or vector."""

    def update(
        self, name: str, tensor: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """One step of one tensor."""
        config = self.config
        count_step(state)
        first = moment(state, "exp_avg", gradient).lerp_(gradient, 1 - config.beta1)
        blocks = in_blocks(name, gradient, config.head_dim)
        mean = blocks.square().mean(-1, keepdim=True)
        second = moment(state, "block_sq", mean).lerp_(mean, 1 - config.beta2)
        root = (second / (1 - config.beta2 ** state["step"])).sqrt_().add_(config.epsilon)
        direction = in_blocks(name, first, config.head_dim) / root
        move(tensor, direction.view_as(tensor).div_(1 - config.beta1 ** state["step"]), group)


def in_blocks(name: str, tensor: torch.Tensor, head_dim: int | None) -> torch.Tensor:
    """A view of ``tensor`` whose last dimension is one block. ``head_dim``: rows per head, where known."""
    if tensor.ndim == 2 and head_dim and owner(name) in BY_HEAD and tensor.shape[0] % head_dim == 0:
        return tensor.reshape(-1, head_dim * tensor.shape[1])
    return tensor if tensor.ndim >= 2 else tensor.reshape(1, math.prod(tensor.shape))
