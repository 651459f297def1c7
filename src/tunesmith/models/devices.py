"""The device and the numbers to compute in. The only module that asks what hardware there is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from tunesmith.config.errors import UserError

if TYPE_CHECKING:
    import torch


def best_device() -> torch.device:
    """cuda (ROCm included), else Apple's mps, else xpu, else cpu; ``TUNESMITH_DEVICE`` overrides."""
    import torch

    named = os.environ.get("TUNESMITH_DEVICE")
    if named:
        try:
            device = torch.device(named)
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(
                f"TUNESMITH_DEVICE={named}: this device cannot be used here ({str(error).splitlines()[0][:120]})",
                hint="unset it to take the best device there is, or set it to cpu",
            ) from error
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return torch.device("xpu")
    return torch.device("cpu")


def dtype_for(precision: str, device: torch.device) -> torch.dtype:
    """``auto``: bf16 where the device computes it fast (CUDA from Ampere, CPUs with AMX or AVX512-BF16), else fp32."""
    import torch

    if precision != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "xpu":
        return torch.bfloat16
    if device.type == "cpu":
        capabilities = [
            getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        ]
        return torch.bfloat16 if any(check() for check in capabilities if check is not None) else torch.float32
    return torch.float32


def set_threads() -> int:
    """Use the cores this process may use (containers included), or ``TUNESMITH_THREADS``; returns the number."""
    import torch

    named = os.environ.get("TUNESMITH_THREADS") or os.environ.get("OMP_NUM_THREADS")
    count = int(named) if named and named.isdigit() else usable_cores()
    torch.set_num_threads(max(1, count))
    return count


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


@dataclass(frozen=True)
class Memory:
    """Bytes on the device: in use by this process at most so far, and free now."""

    peak: int
    free: int


def memory(device: torch.device) -> Memory:
    """Peak and free memory of the device (of the process and machine, on CPU)."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return Memory(torch.cuda.max_memory_allocated(device), free)
    return Memory(peak_rss(), psutil.virtual_memory().available)


def peak_rss() -> int:
    """Largest resident memory of this process so far, in bytes."""
    info: Any = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return int(info.peak_wset)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
