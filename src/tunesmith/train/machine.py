"""What a run computes on, and what it means when that has changed since the checkpoint."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch

WORDS = {
    "device": "device", "name": "processor", "gpus": "GPUs", "threads": "threads", "torch": "torch",
    "transformers": "transformers", "numbers": "numbers",
}  # fmt: skip


def machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What decides the numbers besides the config, as JSON values."""
    import transformers

    cuda = device.type == "cuda"
    return {
        "device": device.type,
        "name": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        "gpus": torch.cuda.device_count() if cuda else 0,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numbers": str(dtype).removeprefix("torch."),
    }


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """One line for a person; '' when nothing changed or the checkpoint (of an older version) does not tell."""
    different = [key for key in WORDS if key in before and key in now and before[key] != now[key]]
    if not different:
        return ""
    listed = ", ".join(f"{WORDS[key]} {before[key]} -> {now[key]}" for key in different)
    random = ""
    if "device" in different or "gpus" in different:
        random = "; dropout draws other numbers"
    return (
        f"the machine is not the one of the checkpoint ({listed}): weights, optimizer and order of the rows go on exactly, "
        f"but the steps from here are no longer bit for bit those of an uninterrupted run{random}"
    )
