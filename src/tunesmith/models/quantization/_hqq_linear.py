"""A linear layer stored as HQQ codes with a step and a zero per group of inputs."""

from __future__ import annotations

import torch

from tunesmith.models.quantization import _hqq_solver, _packing
from tunesmith.models.quantization._loading import PackingLinear

META_BLOCK = 128
"""Steps (or zeros) that share one range when they are stored in 8 bits."""


class HqqLinear(PackingLinear):
    """W = step * (codes - zero), ``group`` inputs of a row share step and zero. The last group of a row may be padded."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype, *, bits: int, group: int,
        compress_scales: bool = False, iterations: int = 20,
    ) -> None:  # fmt: skip
        super().__init__(in_features, out_features, bias, dtype)
        self.bits, self.group = bits, _even(in_features, group)
        self.compress_scales, self.iterations = compress_scales, iterations

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """The packed codes of ``weight`` [out, in]; steps and zeros become buffers."""
        padding = -self.in_features % self.group
        padded = torch.nn.functional.pad(weight, (0, padding), mode="replicate") if padding else weight
        groups = padded.reshape(-1, self.group)
        step, zero = _hqq_solver.steps_and_zeros(groups, self.bits, iterations=self.iterations)
        for name, values in (("step", step), ("zero", zero)):
            for part, tensor in (_compress(values) if self.compress_scales else {"": values}).items():
                self.register_buffer(name + part, tensor)
        codes = _hqq_solver.quantize(groups, self._meta("step"), self._meta("zero"), self.bits)
        return _packing.pack(codes.view(self.out_features, -1), self.bits)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        codes = _packing.unpack(self.weight, self.bits).view(-1, self.group)
        weight = codes.float().sub_(self._meta("zero")[:, None]).mul_(self._meta("step")[:, None])
        return weight.to(dtype).view(self.out_features, -1)[:, : self.in_features]

    def _meta(self, name: str) -> torch.Tensor:
        """Steps or zeros, fp32 [groups]."""
        if not self.compress_scales:
            return self.get_buffer(name).float()
        codes, ranges = self.get_buffer(f"{name}_codes"), self.get_buffer(f"{name}_ranges").float()
        low, high = ranges[:, :1], ranges[:, 1:]
        return (low + codes.float() * ((high - low) / 255)).view(-1)[
            : self.out_features * -(-self.in_features // self.group)
        ]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}, group={self.group}"


def _even(in_features: int, group: int) -> int:
    """The largest group up to ``group`` that cuts a row evenly into as many parts; ``group`` itself when there is none."""
    parts = -(-in_features // group)
    return in_features // parts if in_features % (parts * _packing.MULTIPLE) == 0 else group


def _compress(values: torch.Tensor) -> dict[str, torch.Tensor]:
    """8-bit codes [blocks, 128] and the range [blocks, 2] of each block. No code stands for less than the block's smallest."""
    blocks = torch.nn.functional.pad(values.float()[None], (0, -len(values) % META_BLOCK), mode="replicate")
    blocks = blocks.view(-1, META_BLOCK)
    ranges = torch.stack([blocks.amin(1), blocks.amax(1)], 1).to(torch.bfloat16)
    low, high = ranges.float()[:, :1], ranges.float()[:, 1:]
    codes = ((blocks - low) / ((high - low) / 255).clamp(min=1e-30)).round_().clamp_(0, 255).to(torch.uint8)
    return {"_codes": codes, "_ranges": ranges}
