"""APOLLO (Zhu et al., 2024, arXiv:2412.05270, algorithm 1): SGD whose rate per channel is learned in a random subspace.

For a matrix of m x n with m <= n and gradient G: P (r x m) is random, N(0, 1/r), drawn anew every ``update_gap`` steps;
R = P G, N = Adam(R), and channel j of the gradient is scaled by s_j = |N[:, j]| / |R[:, j]| (``mini``: r = 1 and one s = |N| / |R|
for the whole matrix); W <- W - lr * scale * G diag(s). With m > n rows take the place of columns. The scaled gradient's
norm may grow by the factor ``growth`` at most from one step to the next (norm-growth limiter).

Kept per matrix: 2 n r numbers, a norm and a seed. P is drawn from the seed in every step and never kept.
"""

from __future__ import annotations

import random
from typing import Any

import torch

from tunesmith.train.updates.base import PerTensor, adam_direction, move
from tunesmith.train.updates.roles import projected


class Apollo(PerTensor):
    """Matrices of linear layers by scaled gradients; everything else by AdamW."""

    def update(
        self, name: str, tensor: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """One step of one tensor."""
        rank = 1 if self.config.mini else self.config.rank
        if not projected(name, tensor, rank):
            move(tensor, adam_direction(gradient, state, self.config), group)
            return
        left = tensor.shape[-2] <= tensor.shape[-1]
        if state.get("step", 0) % self.config.update_gap == 0:
            before = state.get("seed", f"{self.config.seed}/{name}")
            state["seed"] = random.Random(before).getrandbits(48)
        drawn = projection(state["seed"], rank, min(tensor.shape[-2:]), tensor.device)
        low = drawn @ gradient if left else gradient @ drawn.mT
        adapted = adam_direction(low, state, self.config)
        over = (-2, -1) if self.config.mini else (-2 if left else -1,)
        factors = norm(adapted, over) / norm(low, over).clamp_min(torch.finfo(torch.float32).tiny)
        scaled = gradient * factors * self.config.resolved_scale
        move(tensor, limited(scaled, state, self.config.growth), group)


def projection(seed: int, rank: int, width: int, device: torch.device) -> torch.Tensor:
    """A ``rank`` x ``width`` matrix of independent N(0, 1/rank), the same for the same seed and kind of device."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(rank, width, generator=generator, device=device) * rank**-0.5


def norm(values: torch.Tensor, over: tuple[int, ...]) -> torch.Tensor:
    """Euclidean norm over the dimensions ``over``, which are kept with length 1."""
    return torch.linalg.vector_norm(values, dim=over, keepdim=True)


def limited(scaled: torch.Tensor, state: dict[str, Any], growth: float) -> torch.Tensor:
    """``scaled``, made shorter where its norm is more than ``growth`` times that of the step before (in place).

    After a step without any gradient there is nothing to compare with, and nothing is limited.
    """
    length = torch.linalg.vector_norm(scaled)
    if "norm" in state and growth:
        most = growth * state["norm"]
        factor = torch.where((most > 0) & (length > most), most / length, 1.0)
        scaled.mul_(factor)
        length = length * factor
    state["norm"] = length
    return scaled
