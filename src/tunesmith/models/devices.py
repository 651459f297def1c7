"""The device and the numbers to compute in. The only module that asks what hardware there is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
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
    """The numbers the weights compute in. ``auto``: bf16 where the device computes it fast (CUDA from Ampere, CPUs with AMX
    or AVX512-BF16), fp16 on CUDA without bf16 (Turing and older: T4, RTX 20), else fp32."""
    import torch

    if precision != "auto":
        return {
            "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "pure_bf16": torch.bfloat16,
        }[precision]  # fmt: skip
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
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
    """Bytes on the device: in use by this process at most so far and now, free to it now, and all there is."""

    peak: int
    free: int
    used: int
    total: int


def memory(device: torch.device) -> Memory:
    """Memory of the device; on a CPU of the process and the machine, or of the container it is confined to."""
    import torch

    if device.type in ("cuda", "xpu"):
        module: Any = torch.cuda if device.type == "cuda" else torch.xpu
        free, total = module.mem_get_info(device)
        used = module.memory_allocated(device)
        kept = module.memory_reserved(device) - used  # held by torch's allocator, free to our tensors
        return Memory(module.max_memory_allocated(device), free + kept, used, total)
    if device.type == "mps":
        used, total = torch.mps.current_allocated_memory(), torch.mps.recommended_max_memory()
        return Memory(used, max(0, total - torch.mps.driver_allocated_memory()), used, total)
    machine = psutil.virtual_memory()
    left, limit = _container_memory()
    used = psutil.Process().memory_info().rss
    return Memory(peak_rss(), min(machine.available, left), used, min(machine.total, limit))


def _container_memory() -> tuple[int, int]:
    """Bytes left and allowed by the control group (Linux, version 2 or 1); without a limit, more than there can be."""
    endless = 1 << 62
    for limit, used, reclaimable in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        root = Path("/sys/fs/cgroup")
        try:
            allowed, taken = int((root / limit).read_text()), int((root / used).read_text())
            lines = (root / limit).with_name("memory.stat").read_text().splitlines()
        except (OSError, ValueError):  # no such control group, or "max": no limit
            continue
        cache = next((int(line.split()[1]) for line in lines if line.startswith(f"{reclaimable} ")), 0)
        return max(0, allowed - taken + cache), allowed
    return endless, endless


def forget_peak(device: torch.device) -> None:
    """Count the peak from now on, where the device can (a CPU's process cannot)."""
    import torch

    if device.type in ("cuda", "xpu"):
        (torch.cuda if device.type == "cuda" else torch.xpu).reset_peak_memory_stats(device)


def peak_rss() -> int:
    """Largest resident memory of this process so far, in bytes."""
    info: Any = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return int(info.peak_wset)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
