"""torchao's AdamW (BSD) as the loop needs it: the learning rate a number, and no compiler for a CPU."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import torch

_logger = logging.getLogger("torchao")
_logger.addFilter(lambda entry: not entry.getMessage().startswith("Failed to load"))  # kernels of other devices
import torchao.optim  # noqa: E402


class _Usual:
    """Before torchao's class among the bases: takes learning rates as numbers, and computes without compiling on a CPU."""

    param_groups: list[dict[str, Any]]

    def step(self, closure: Any = None) -> None:
        """One step for every parameter that has a gradient."""
        on_cpu = True
        for group in self.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32)
            on_cpu = on_cpu and all(parameter.device.type == "cpu" for parameter in group["params"])
        # Compiling takes half a minute and a C++ compiler; on a CPU the eager step is the same arithmetic.
        with torch.compiler.set_stance("force_eager") if on_cpu else contextlib.nullcontext():
            super().step(closure)  # type: ignore[misc]


class AdamW8bit(_Usual, torchao.optim.AdamW8bit):
    """Blocks of 256 numbers with one scale each."""

    state_kind = "torchao.AdamW8bit"


class AdamW4bit(_Usual, torchao.optim.AdamW4bit):
    """Blocks of 128 numbers with one scale each."""

    state_kind = "torchao.AdamW4bit"


class AdamWFp8(_Usual, torchao.optim.AdamWFp8):
    """e4m3 numbers, blocks of 256 with one scale each."""

    state_kind = "torchao.AdamWFp8"


KINDS: dict[str, Any] = {"8bit": AdamW8bit, "4bit": AdamW4bit, "fp8": AdamWFp8}
