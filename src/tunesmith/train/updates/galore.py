"""GaLore (Zhao et al., 2024, arXiv:2403.03507, algorithm 2): Adam in the subspace of the gradient's leading singular vectors.

For a matrix of m x n with m <= n, every ``update_gap`` steps P (m x r) becomes the first r left singular vectors of its gradient G;
then R = P^T G (r x n), N = Adam(R), W <- W - lr * scale * P N. With m > n the right singular vectors are taken: R = G P, P n x r.
Kept per matrix: m r + 2 n r numbers instead of Adam's 2 m n. Moments are carried over when P changes, as in the paper.
"""

from __future__ import annotations

from typing import Any

import torch

from tunesmith.train.updates.base import PerTensor, adam_direction, move
from tunesmith.train.updates.roles import projected


class GaLore(PerTensor):
    """Matrices of linear layers in their subspace; everything else by AdamW."""

    def update(
        self, name: str, tensor: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """One step of one tensor."""
        if not projected(name, tensor, self.config.rank):
            move(tensor, adam_direction(gradient, state, self.config), group)
            return
        left = tensor.shape[-2] <= tensor.shape[-1]
        if state.get("step", 0) % self.config.update_gap == 0:
            state["projector"] = leading_vectors(gradient, self.config.rank, left=left)
        basis = state["projector"]
        low = basis.mT @ gradient if left else gradient @ basis
        low = adam_direction(low, state, self.config)
        move(tensor, (basis @ low if left else low @ basis.mT).mul_(self.config.scale), group)


def leading_vectors(matrix: torch.Tensor, rank: int, *, left: bool) -> torch.Tensor:
    """The first ``rank`` left (or right) singular vectors as columns.

    Singular vectors are unique up to their sign: the one is taken whose largest entry is positive, so that all LAPACKs agree.
    """
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    vectors = (u[..., :rank] if left else v.mT[..., :rank]).contiguous()
    largest = vectors.gather(-2, vectors.abs().argmax(-2, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0)
