"""``precision: auto`` resolved once per run, by what the device computes fastest."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tunesmith.models.devices import dtype_for

if TYPE_CHECKING:
    import torch


def resolve_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """``("bf16" | "fp32", why)``. On a CPU that has bf16 instructions both are tried: some have them only by name."""
    import torch

    if wanted != "auto":
        return wanted, ""
    if dtype_for("auto", device) != torch.bfloat16:
        return "fp32", "this device has no fast bf16"
    if device.type != "cpu":
        return "bf16", ""
    ratio = _seconds(torch.float32) / _seconds(torch.bfloat16)
    if ratio > 0.9:
        return "bf16", f"matmul {ratio:.1f}x as fast as in fp32"
    return "fp32", f"bf16 matmul reaches only {ratio:.1f}x the speed of fp32 on this CPU"


def _seconds(dtype: torch.dtype) -> float:
    """Best of several matrix products of the shape of a small model's layer."""
    import torch

    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(512, 576, generator=generator).to(dtype), torch.randn(1536, 576, generator=generator).to(dtype)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        x @ w.t()
        times.append(time.perf_counter() - start)
    return min(times)
