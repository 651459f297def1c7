"""Linear layers of checkpoints that are stored quantized: the file's own tensors, dequantized when they are used.

Pure torch, on any device: neither the makers' kernels nor their packages are needed. Formats after AutoGPTQ / GPTQModel
(``quant_linear``), AutoAWQ (``gemm``), compressed-tensors and DeepSeek-V3's block-wise fp8.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tunesmith.models.quantization._linear import FrozenLinear

Stored = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Type and shape of a layer's tensors by their names in the file."""


class StoredLinear(FrozenLinear):
    """A layer with the tensors ``stored`` in the file; ``MAIN`` is the one that holds the weight."""

    MAIN = "qweight"

    def __init__(
        self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype, stored: Stored, how: dict[str, Any]
    ) -> None:
        super().__init__(in_features, out_features, bias, dtype)
        self.register_parameter("weight", None)
        for name, (kind, shape) in stored.items():
            tensor = torch.empty(shape, dtype=kind)
            if name == "weight":
                self.weight = nn.Parameter(tensor, requires_grad=False)
            elif name != "bias":
                self.register_buffer(name, tensor)
        self.how = how

    def settle(self) -> None:
        """After loading: ``weight`` is the stored integers, so that peft takes it for no type to compute in."""
        tensor = self.weight.data if self.MAIN == "weight" else self._buffers.pop(self.MAIN)
        assert tensor is not None
        if tensor.is_floating_point():
            self.how = {**self.how, "float": tensor.dtype}
            tensor = tensor.view(torch.uint8)
        self.weight = nn.Parameter(tensor, requires_grad=False)

    def tensor(self, name: str) -> torch.Tensor | None:
        """A stored tensor, or None."""
        return self._buffers.get(name)


class GptqLinear(StoredLinear):
    """W[o, i] = scales[g, o] * (q[i, o] - z[g, o]), g = g_idx[i] (Frantar et al., 2022, arXiv:2210.17323).

    ``qweight`` int32 [in * bits / 32, out] is packed along the inputs, ``qzeros`` int32 [groups, out * bits / 32] along the
    outputs, the lowest bits first. Files of the first format (all but ``checkpoint_format: gptq_v2``) store z - 1.
    """

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        zeros, scales, order = self.tensor("qzeros"), self.tensor("scales"), self.tensor("g_idx")
        assert zeros is not None and scales is not None
        if order is None:
            size = self.how["group_size"] if self.how["group_size"] > 0 else self.in_features
            order = torch.arange(self.in_features, device=scales.device) // size
        first = self.how.get("checkpoint_format") != "gptq_v2"
        return gptq_weight(self.how["bits"], self.weight, zeros, scales, order, below=int(first)).to(dtype)


class AwqLinear(StoredLinear):
    """W[o, i] = scales[g, o] * (q[i, o] - z[g, o]), g = i / group (Lin et al., 2023, arXiv:2306.00978), gemm packing.

    ``qweight`` int32 [in, out / 8] and ``qzeros`` int32 [groups, out / 8]: eight outputs a word, in the order 0 2 4 6 1 3 5 7.
    """

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        zeros, scales = self.tensor("qzeros"), self.tensor("scales")
        assert zeros is not None and scales is not None
        return awq_weight(self.weight, zeros, scales).to(dtype)


class ScaledLinear(StoredLinear):
    """W = scale * (q - z) for q stored plainly as float8 or int8: one scale for all, per row, per group or per block."""

    MAIN = "weight"

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        stored = self.weight.view(self.how["float"]) if "float" in self.how else self.weight
        return self.scaled(stored.float()).to(dtype)

    def scaled(self, q: torch.Tensor) -> torch.Tensor:
        """``q`` (fp32 [out, in]) with zero points taken off and scaled, in place."""
        scale = self.tensor("weight_scale") if "weight_scale" in self._buffers else self.tensor("weight_scale_inv")
        zero, order = self.tensor("weight_zero_point"), self.tensor("weight_g_idx")
        assert scale is not None
        if zero is not None:
            if zero.dtype == torch.int32:
                zero = unpack_words(zero.t(), self.how["bits"]).t()[: self.out_features] - 2 ** (self.how["bits"] - 1)
            q = q.sub_(self._spread(zero.float(), order))
        return q.mul_(self._spread(scale.float(), order))

    def _spread(self, values: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
        """``values`` of any granularity so that they multiply [out, in]."""
        if values.numel() == 1:
            return values.reshape(1, 1)
        values = values.reshape(len(values), -1)
        rows, columns = self.how.get("block") or (1, self.how.get("group_size") or self.in_features)
        if rows > 1:
            values = values.repeat_interleave(rows, 0)[: self.out_features]
        if values.shape[1] == 1:
            return values
        if order is not None:
            return values[:, order.long()]
        return values.repeat_interleave(columns, 1)[:, : self.in_features]


class PackedLinear(ScaledLinear):
    """compressed-tensors' ``pack-quantized``: ``weight_packed`` int32 [out, in * bits / 32], each value plus 2^(bits - 1)."""

    MAIN = "weight_packed"

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        bits = self.how["bits"]
        q = unpack_words(self.weight, bits)[:, : self.in_features] - 2 ** (bits - 1)
        return self.scaled(q.float()).to(dtype)


def gptq_weight(
    bits: int,
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    g_idx: torch.Tensor,
    *,
    below: int = 1,
) -> torch.Tensor:
    """The weight (fp32 [out, in]) that the tensors of a GPTQ layer stand for; ``below``: stored zeros are so much less."""
    order = g_idx.long()
    q = unpack_words(qweight.t(), bits)[:, : len(order)]
    z = unpack_words(qzeros, bits)[:, : scales.shape[1]] + below & 2**bits - 1
    return (q - z.t()[:, order]).float() * scales.t().float()[:, order]


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight outputs in a row the first, second … four bits of a word hold."""


def awq_weight(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The weight (fp32 [out, in]) that the tensors of an AWQ layer stand for."""
    place = [AWQ_ORDER.index(k) for k in range(8)]
    q, z = (unpack_words(words, 4).view(len(words), -1, 8)[:, :, place].flatten(1) for words in (qweight, qzeros))
    groups = q.view(len(z), len(q) // len(z), -1)
    return ((groups - z[:, None]).float() * scales.float()[:, None]).flatten(0, 1).t()


def awq_words(values: torch.Tensor) -> torch.Tensor:
    """int32 words [rows, out / 8] from 4-bit ``values`` [rows, out], out a multiple of 32; read by ``awq_weight``."""
    return pack_words(values.reshape(len(values), -1, 8)[:, :, list(AWQ_ORDER)].flatten(1), 4)


def pack_words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 words [rows, n * bits / 32] from unsigned ``values`` [rows, n], n a multiple of 32; undone by ``unpack_words``."""
    rows, n = values.shape
    assert n % 32 == 0, f"{n} values in a row do not fill whole words"
    parts = values.view(rows, n // 32, 32).long()
    words = parts.new_zeros(rows, n // 32, bits + 1)  # one more for the upper half of the last shift, always 0
    for k in range(32):
        wide = parts[:, :, k] << (k * bits % 32)
        words[:, :, k * bits // 32] |= wide & 0xFFFFFFFF
        words[:, :, k * bits // 32 + 1] |= wide >> 32
    words = words[:, :, :bits]
    return torch.where(words >= 2**31, words - 2**32, words).int().flatten(1)


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned values (int32 [rows, n]) from int32 words [rows, n * bits / 32], the lowest bits first.

    With 3 bits a value may lie across two words: 32 values in three words.
    """
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, device=words.device, dtype=torch.int32)
        return (words[:, :, None] >> shifts & 2**bits - 1).flatten(1)
    count = words.shape[1] * 32 // bits
    at = torch.arange(count, device=words.device) * bits
    wide = words.long() & 0xFFFFFFFF
    wide = torch.nn.functional.pad(wide, (0, 1))
    pair = wide[:, at // 32] | wide[:, at // 32 + 1] << 32
    return (pair >> (at % 32) & 2**bits - 1).int()
