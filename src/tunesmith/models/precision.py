"""``precision: auto`` resolved once per run, by what the device computes fastest."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tunesmith.models.devices import dtype_for

if TYPE_CHECKING:
    import torch


def resolve_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """``("bf16" | "fp16" | "fp32", why)``. On a CPU that has bf16 instructions both are tried: some have them only by name."""
    import torch

    if wanted != "auto":
        return wanted, ""
    fastest = dtype_for("auto", device)
    if fastest != torch.bfloat16:
        return "fp16" if fastest == torch.float16 else "fp32", "this device has no fast bf16"
    if device.type != "cpu":
        return "bf16", ""
    ratio = _fp32_over_bf16()
    if ratio > 1.5:  # the other operations of a step are slower in bf16, so a small gain here is a loss there
        return "bf16", f"matmul {ratio:.1f}x as fast as in fp32"
    return "fp32", f"bf16 is no faster on this CPU: matmul {ratio:.1f}x the speed of fp32"


def _fp32_over_bf16() -> float:
    """Seconds of an fp32 matrix product over those of a bf16 one, of the shape of a small model's layer.

    The two take turns and the best time of each counts: other work on the machine only ever adds time.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(512, 576, generator=generator), torch.randn(1536, 576, generator=generator)
    pairs = {dtype: (x.to(dtype), w.to(dtype).t()) for dtype in (torch.float32, torch.bfloat16)}
    best = dict.fromkeys(pairs, float("inf"))
    for _ in range(20):
        for dtype, (left, right) in pairs.items():
            start = time.perf_counter()
            left @ right
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best[torch.float32] / best[torch.bfloat16]
