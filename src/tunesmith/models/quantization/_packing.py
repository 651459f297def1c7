"""Small integers in bytes: 2, 3, 4 and 8 bits a value, with nothing wasted (3 bits: eight values in three bytes).

Knows nothing of weights or scales. A row is cut into ``8 / bits`` equal parts (eight parts for 3 bits) and the values at
the same place of each part share a byte (three bytes), so that packing and unpacking move whole contiguous parts.
"""

from __future__ import annotations

import torch

MULTIPLE = 8
"""Rows must be so many values long, or a multiple of it."""


def packed_width(values: int, bits: int) -> int:
    """Bytes that a row of ``values`` takes."""
    return values * bits // 8


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """``codes`` (uint8 [rows, n], each below 2^bits) as uint8 [rows, n * bits / 8]."""
    rows, n = codes.shape
    assert n % MULTIPLE == 0, f"{n} values in a row, not a multiple of {MULTIPLE}"
    if bits == 8:
        return codes.contiguous()
    if bits == 3:
        parts = codes.view(rows, 8, n // 8).to(torch.int32)
        word = parts[:, 0].clone()
        for i in range(1, 8):
            word |= parts[:, i] << (3 * i)
        return torch.stack([(word >> shift & 255).to(torch.uint8) for shift in (0, 8, 16)], 1).view(rows, -1)
    count = 8 // bits
    parts = codes.view(rows, count, n // count)
    packed = parts[:, 0].clone()
    for i in range(1, count):
        packed |= parts[:, i] << (bits * i)
    return packed


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The codes (uint8 [rows, n]) of ``packed``."""
    if bits == 8:
        return packed
    rows = len(packed)
    if bits == 3:
        b = packed.view(rows, 3, -1).to(torch.int32)
        word = b[:, 0] | b[:, 1] << 8 | b[:, 2] << 16
        return torch.stack([(word >> (3 * i) & 7).to(torch.uint8) for i in range(8)], 1).view(rows, -1)
    mask = 2**bits - 1
    return torch.stack([packed >> (bits * i) & mask for i in range(8 // bits)], 1).view(rows, -1)
