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


class Config(BaseConfig):
    """AdamW with its moments in few bits (torchao): a quarter or an eighth of the memory, AdamW's learning rates. It is compiled in the
    first steps on a GPU (a minute), and slow on a CPU."""

    model_config = ConfigDict(
        json_schema_extra={
            "zh": "低位 AdamW（torchao）：优化器状态为 AdamW 的四分之一或八分之一，学习率相同；GPU 上开头几步需编译，CPU 上较慢。"
        }
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


def build(groups: Groups, config: Config) -> torch.optim.Optimizer:
    """torchao's AdamW. Raises UserError when torchao is not installed."""
    from tunesmith.train.optimizers.base import needs

    needs(config.kind, REQUIRES)
    from tunesmith.train.optimizers._torchao import KINDS

    made: torch.optim.Optimizer = KINDS[config.state](groups, betas=(config.beta1, config.beta2), eps=config.epsilon)
    return made
