"""Muon's rule (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) beside AdamW, as one optimizer.

For a matrix W with gradient G, momentum B and learning rate a:

    B <- mu B + (1 - mu) G
    O  = the nearest orthogonal matrix, about, of (1 - mu) G + mu B   (of B without Nesterov)
    W <- W (1 - a * decay) - a * size * O

``size`` is 0.2 sqrt(max(rows, columns)), so that the root mean square of an update is AdamW's (Liu et al., 2025, arXiv:2502.16982,
section 2.2), or sqrt(max(1, rows / columns)). torch.optim.Muon is the same for single matrices; here the experts of a layer, a stack of
matrices in one parameter, are made orthogonal one by one, and the other parameters are learned by the same object.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from tunesmith.train.optimizers.base import Groups, one_kernel

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that is steepest at zero; singular values end between about 0.7 and 1.2."""


class Muon(torch.optim.Optimizer):
    """``matrices`` are learned by Muon (state ``momentum_buffer``), ``others`` by AdamW."""

    def __init__(
        self, matrices: Groups, others: Groups, *, momentum: float, nesterov: bool, iterations: int, match_rms: bool,
        betas: tuple[float, float], epsilon: float,
    ) -> None:  # fmt: skip
        settings = {"momentum": momentum, "nesterov": nesterov, "iterations": iterations, "match_rms": match_rms}
        super().__init__([*matrices, *others], settings)
        self._matrices = self.param_groups[: len(matrices)]
        self._adamw = None
        if others:  # one state and one list of groups, so that both parts are kept, and their rates set, as one
            of_adamw = self.param_groups[len(matrices) :]
            self._adamw = torch.optim.AdamW(of_adamw, betas=betas, eps=epsilon, fused=one_kernel(others))
            self._adamw.state = self.state
            self.defaults |= self._adamw.defaults

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step for every parameter that has a gradient."""
        assert closure is None, "the loop computes its loss itself"
        for group in self._matrices:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        if self._adamw is not None:
            self._adamw.step()

    def _update(self, parameter: torch.nn.Parameter, group: dict[str, Any]) -> None:
        gradient, momentum, rate = parameter.grad, group["momentum"], group["lr"]
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        update = gradient.lerp(buffer, momentum) if group["nesterov"] else buffer
        rows, columns = parameter.shape[-2:]
        size = 0.2 * math.sqrt(max(rows, columns)) if group["match_rms"] else math.sqrt(max(1, rows / columns))
        # bf16 is as published, and enough; CPUs without matrix units for it are slower in bf16 than in fp32.
        dtype = torch.float32 if parameter.device.type == "cpu" else torch.bfloat16
        orthogonal = newton_schulz(update, group["iterations"], dtype)
        parameter.mul_(1 - rate * group["weight_decay"]).add_(orthogonal, alpha=-rate * size)


def newton_schulz(matrix: torch.Tensor, iterations: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """About U V^T of ``matrix`` = U S V^T (the last two dimensions; others are a stack), computed in ``dtype``."""
    a, b, c = COEFFICIENTS
    x = matrix.to(dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
