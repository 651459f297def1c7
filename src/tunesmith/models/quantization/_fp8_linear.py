"""A linear layer stored as float8 (e4m3) with a scale per output row."""

from __future__ import annotations

import torch

from tunesmith.models.quantization._loading import PackingLinear

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max


class Fp8Linear(PackingLinear):
    """W = scale * float8. Stored as bytes, because peft would put its adapters into a floating ``weight.dtype``."""

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """The float8 bytes of ``weight`` [out, in]; its scales become a buffer."""
        scale = weight.float().abs().amax(1, keepdim=True).div_(LARGEST)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        self.register_buffer("scale", scale)
        return (weight.float() / scale).to(FP8).view(torch.uint8)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return self.weight.view(FP8).float().mul_(self.get_buffer("scale")).to(dtype)
