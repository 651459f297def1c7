"""AdamW with 8-bit moments that move to the computer's memory when the GPU's runs out (Dettmers et al., 2023,
arXiv:2305.14314, section 3), bitsandbytes'."""

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
    """AdamW with 8-bit moments that the GPU may move to the computer's memory (bitsandbytes). On a CPU the same as ``adamw_8bit``."""

    model_config = ConfigDict(
        json_schema_extra={
            "zh": "分页的 8 位 AdamW（bitsandbytes）：显存不足时状态可移到内存；在 CPU 上与 adamw_8bit 相同。"
        }
    )

    kind: Literal["paged_adamw_8bit"] = "paged_adamw_8bit"
    """Paged AdamW in 8 bits."""
    beta1: float = setting(0.9, zh="一阶矩的衰减率 beta1。", ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = setting(0.999, zh="二阶矩的衰减率 beta2。", ge=0, lt=1)
    """Decay of the second moment."""
    epsilon: float = setting(1e-8, zh="分母中的 epsilon。", gt=0)
    """Added to the denominator."""
    min_8bit_size: int = setting(4096, zh="元素少于此数的参数保持 32 位状态。", ge=1)
    """Parameters with fewer numbers than this keep their moments in 32 bits."""


def build(groups: Groups, config: Config) -> torch.optim.Optimizer:
    """bitsandbytes' paged AdamW with 8-bit moments. Raises UserError when bitsandbytes is not installed."""
    from tunesmith.train.optimizers.base import needs

    needs(config.kind, REQUIRES)
    from tunesmith.train.optimizers._bitsandbytes import AdamW

    return AdamW(
        groups, beta1=config.beta1, beta2=config.beta2, epsilon=config.epsilon, bits=8, min_8bit_size=config.min_8bit_size,
        paged=True,
    )  # fmt: skip
