"""What the memory-saving update rules share: one tensor is stepped after the other, each from its own gradient and state alone.

So they can be stepped within the backward pass (``train.backward``), while no other gradient lives. All state is tensors and
plain numbers in ``state``; the settings stay in ``config``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from tunesmith.train.optimizers.base import Groups


class PerTensor(torch.optim.Optimizer):
    """An optimizer that steps each tensor by ``update``."""

    def __init__(self, groups: Groups, config: Any) -> None:
        self.config = config
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step every tensor that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for name, tensor in zip(group["names"], group["params"], strict=True):
                if tensor.grad is not None:
                    self.update(name, tensor, tensor.grad.float(), self.state[tensor], group)

    def update(
        self, name: str, tensor: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """Step one tensor in place. ``gradient``: fp32, not to be changed. ``group``: its ``lr`` and ``weight_decay``."""
        raise NotImplementedError


def adam_direction(gradient: torch.Tensor, state: dict[str, Any], config: Any) -> torch.Tensor:
    """Adam's m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon), with ``gradient`` taken into the moments of ``state``
    first (Kingma & Ba, 2014, arXiv:1412.6980). A new tensor of the gradient's shape."""
    count_step(state)
    first, second = moment(state, "exp_avg", gradient), moment(state, "exp_avg_sq", gradient)
    first.lerp_(gradient, 1 - config.beta1)
    second.mul_(config.beta2).addcmul_(gradient, gradient, value=1 - config.beta2)
    root = second.sqrt().div_(math.sqrt(1 - config.beta2 ** state["step"])).add_(config.epsilon)
    return root.reciprocal_().mul_(first).div_(1 - config.beta1 ** state["step"])


def count_step(state: dict[str, Any]) -> None:
    """``step`` counts from 1."""
    state["step"] = state.get("step", 0) + 1


def moment(state: dict[str, Any], key: str, like: torch.Tensor) -> torch.Tensor:
    """The running mean ``key``, zero at first."""
    if key not in state:
        state[key] = torch.zeros_like(like)
    found: torch.Tensor = state[key]
    return found


def move(tensor: torch.Tensor, direction: torch.Tensor, group: dict[str, Any]) -> None:
    """tensor <- (1 - lr * weight_decay) * tensor - lr * direction (decay decoupled, as in AdamW)."""
    if group["weight_decay"]:
        tensor.mul_(1 - group["lr"] * group["weight_decay"])
    tensor.add_(direction, alpha=-group["lr"])


def rms(values: torch.Tensor) -> torch.Tensor:
    """Root of the mean square, a scalar tensor."""
    return values.square().mean().sqrt()
