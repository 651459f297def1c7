"""The same numbers from the same run: torch's deterministic algorithms."""

from __future__ import annotations

import os


def be_deterministic() -> None:
    """Ask torch for deterministic algorithms only. Call before the device is used: cuBLAS reads its workspace setting when it
    starts. An operation that has no deterministic version then raises RuntimeError with its name."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
