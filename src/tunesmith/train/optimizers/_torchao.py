"""torchao's AdamW (BSD) as the loop needs it: the learning rate a number, and compiling a choice."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torchao.optim

from tunesmith.train.optimizers.base import Groups


class _Usual:
    """Before torchao's class among the bases: takes learning rates as numbers, and computes without compiling if told so."""

    param_groups: list[dict[str, Any]]

    def __init__(self, groups: Groups, *, compiled: bool, **settings: Any) -> None:
        super().__init__(groups, **settings)  # type: ignore[call-arg]
        self._compiled = compiled

    def step(self, closure: Any = None) -> None:
        """One step for every parameter that has a gradient."""
        for group in self.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32)
        with contextlib.nullcontext() if self._compiled else torch.compiler.set_stance("force_eager"):
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
