"""AdamW with its two moments in 8 bits (Dettmers et al., 2021, arXiv:2110.02861), bitsandbytes'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting

if TYPE_CHECKING:
    import torch

    from tunesmith.train.optimizers.base import Groups

REQUIRES = ("bitsandbytes", "bnb")

PER_TENSOR = True
"""The step of a tensor needs its own gradient only (``train.backward``)."""


class Config(BaseConfig):
    """AdamW with its moments in 8 bits (bitsandbytes): a quarter of the memory, AdamW's learning rates."""

    model_config = ConfigDict(
        json_schema_extra={"zh": "8 位 AdamW（bitsandbytes）：优化器状态约为 AdamW 的四分之一，学习率相同。"}
    )

    kind: Literal["adamw_8bit"] = "adamw_8bit"
    """AdamW in 8 bits."""
    beta1: float = setting(0.9, zh="一阶矩的衰减率 beta1。", ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = setting(0.999, zh="二阶矩的衰减率 beta2。", ge=0, lt=1)
    """Decay of the second moment."""
    epsilon: float = setting(1e-8, zh="分母中的 epsilon。", gt=0)
    """Added to the denominator."""
    min_8bit_size: int = setting(4096, zh="元素少于此数的参数保持 32 位状态。", ge=1)
    """Parameters with fewer numbers than this keep their moments in 32 bits."""


def build(groups: Groups, config: Config) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW with 8-bit moments. Raises UserError when bitsandbytes is not installed."""
    from tunesmith.train.optimizers.base import needs

    needs(config.kind, REQUIRES)
    from tunesmith.train.optimizers._bitsandbytes import AdamW

    return AdamW(
        groups, beta1=config.beta1, beta2=config.beta2, epsilon=config.epsilon, bits=8, min_8bit_size=config.min_8bit_size,
        paged=False,
    )  # fmt: skip
