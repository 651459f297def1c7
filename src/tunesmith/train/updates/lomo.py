"""LOMO (Lv et al., 2023, arXiv:2306.09782): SGD applied while the backward pass runs, so that neither gradients nor states
are kept; and AdaLomo (Lv et al., 2023, arXiv:2310.10195), which adds Adafactor's row and column means.

AdaLomo, for a matrix with gradient G at its step t, b = 1 - t^-0.8: r <- b r + (1-b) mean_j G^2, c <- b c + (1-b) mean_i G^2,
V = r c / mean(r), U = G / sqrt(V); grouped update normalization: W <- W - lr * max(1e-3, RMS(W)) * U / max(1, RMS(U)).
Vectors keep a whole V. The fusion itself is ``train.backward``'s; here is the rule for one tensor.
"""

from __future__ import annotations

from typing import Any

import torch

from tunesmith.train.updates.base import PerTensor, count_step, moment, move, rms

TINY = 1e-30
"""Added to squared gradients (Adafactor's epsilon 1)."""
SMALLEST_RMS = 1e-3
"""A tensor of zeros moves as if its root mean square were this (Adafactor's epsilon 2)."""


class Lomo(PerTensor):
    """Plain SGD: W <- W - lr * G."""

    def update(
        self, name: str, tensor: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """One step of one tensor."""
        move(tensor, gradient, group)


class AdaLomo(PerTensor):
    """SGD with factored second moments and normalized updates."""

    def update(
        self, name: str, tensor: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """One step of one tensor."""
        count_step(state)
        weight = state["step"] ** -0.8
        square = gradient.square().add_(TINY)
        if tensor.ndim >= 2:
            rows, columns = square.mean(-1, keepdim=True), square.mean(-2, keepdim=True)
            rows = moment(state, "row_sq", rows).lerp_(rows, weight)
            columns = moment(state, "column_sq", columns).lerp_(columns, weight)
            estimate = rows / rows.mean(-2, keepdim=True) * columns
        else:
            estimate = moment(state, "exp_avg_sq", square).lerp_(square, weight)
        direction = gradient * estimate.rsqrt()
        size = rms(tensor.float()).clamp_min(SMALLEST_RMS) / rms(direction).clamp_min(1.0)
        move(tensor, direction.mul_(size), group)
