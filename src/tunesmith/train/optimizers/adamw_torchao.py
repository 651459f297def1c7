"""AdamW with its two moments in 8 or 4 bits or fp8, torchao's (4 bits after Li et al., 2023, arXiv:2309.01507)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting

if TYPE_CHECKING:
    import torch

    from tunesmith.train.optimizers.base import Groups

REQUIRES = ("torchao", "torchao")

PER_TENSOR = True
"""The step of a tensor needs its own gradient only (``train.backward``)."""


class Config(BaseConfig):
    """AdamW with its moments in few bits (torchao): a quarter or an eighth of the memory, AdamW's learning rates."""

    model_config = ConfigDict(
        json_schema_extra={"zh": "低位 AdamW（torchao）：优化器状态为 AdamW 的四分之一或八分之一，学习率相同。"}
    )

    kind: Literal["adamw_torchao"] = "adamw_torchao"
    """AdamW of torchao."""
    state: Literal["8bit", "4bit", "fp8"] = setting("8bit", zh="两个矩的存储格式。")
    """Numbers that the two moments are kept in."""
    beta1: float = setting(0.9, zh="一阶矩的衰减率 beta1。", ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = setting(0.999, zh="二阶矩的衰减率 beta2。", ge=0, lt=1)
    """Decay of the second moment."""
    epsilon: float = setting(1e-8, zh="分母中的 epsilon。", gt=0)
    """Added to the denominator."""

    compile: bool | None = setting(
        None, zh="编译更新步骤：快约十倍，首步约需半分钟，CPU 上需要 C++ 编译器（默认仅在 GPU 上）。"
    )
    """Compile the step: ten times as fast, half a minute at the first step, on a CPU only with a C++ compiler. By default on GPUs only."""


def build(groups: Groups, config: Config) -> torch.optim.Optimizer:
    """torchao's AdamW. Raises UserError when torchao is not installed."""
    from tunesmith.train.optimizers.base import needs, on_cpu

    needs(config.kind, REQUIRES)
    from tunesmith.train.optimizers._torchao import KINDS

    compiled = not on_cpu(groups) if config.compile is None else config.compile
    made: torch.optim.Optimizer = KINDS[config.state](
        groups, compiled=compiled, betas=(config.beta1, config.beta2), eps=config.epsilon
    )
    return made
