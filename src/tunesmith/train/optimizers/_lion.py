"""Lion's rule (Chen et al., 2023, arXiv:2302.06675, algorithm 2). For weights w, gradient g, momentum m, learning rate a:

w <- w (1 - a * decay) - a * sign(beta1 m + (1 - beta1) g)
m <- beta2 m + (1 - beta2) g
"""

from __future__ import annotations

from typing import Any

import torch

from tunesmith.train.optimizers.base import Groups


class Lion(torch.optim.Optimizer):
    """One state, ``exp_avg``, in the numbers of the gradient."""

    def __init__(self, groups: Groups, beta1: float, beta2: float) -> None:
        super().__init__(groups, {"beta1": beta1, "beta2": beta2})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step for every parameter that has a gradient."""
        assert closure is None, "the loop computes its loss itself"
        for group in self.param_groups:
            rate, beta1, beta2 = group["lr"], group["beta1"], group["beta2"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter.grad)
                momentum = state["exp_avg"]
                direction = momentum.lerp(parameter.grad, 1 - beta1).sign_()
                parameter.mul_(1 - rate * group["weight_decay"]).add_(direction, alpha=-rate)
                momentum.lerp_(parameter.grad, 1 - beta2)
