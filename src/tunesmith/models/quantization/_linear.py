"""A linear layer whose weight is frozen and stored in few bits: dequantized when it is used, never kept.

Knows nothing of any number format; a subclass says how its weight is stored. It is an ``nn.Linear`` so that peft finds
it (LoRA, DoRA, ``all-linear``); its ``weight`` is the packed integers, so that nothing takes them for numbers to learn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class FrozenLinear(nn.Linear):
    """y = x Wᵀ + b with W = ``dequantize()``. Gradients go through to x, none to W."""

    def __init__(self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        values = nn.Parameter(torch.empty(out_features, dtype=dtype), requires_grad=False) if bias else None
        self.register_parameter("bias", values)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight in ``dtype``, [out, in]."""
        raise NotImplementedError

    @property
    def W_q(self) -> torch.Tensor:
        """The stored weight; a layer that has it is asked by peft for ``dequantize()`` (the norms of DoRA)."""
        return self.weight

    def reset_parameters(self) -> None:
        """Nothing: the weight comes from a checkpoint."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = _Product.apply(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, bias={self.bias is not None}"


class _Product(torch.autograd.Function):
    """x Wᵀ. The weight is dequantized again in the backward pass, so that no 16-bit copy waits for it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: FrozenLinear) -> torch.Tensor:
        ctx.layer = layer
        return functional.linear(x, layer.dequantize(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.dequantize(gradient.dtype), None
