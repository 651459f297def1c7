"""AdamW whose 32-bit moments move to the computer's memory when the GPU's runs out (Dettmers et al., 2023,
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
    """AdamW whose moments the GPU may move to the computer's memory (bitsandbytes). On a CPU there is nothing to move."""

    model_config = ConfigDict(
        json_schema_extra={"zh": "分页的 AdamW（bitsandbytes）：显存不足时状态可移到内存；在 CPU 上无需移动。"}
    )

    kind: Literal["paged_adamw"] = "paged_adamw"
    """Paged AdamW."""
    beta1: float = setting(0.9, zh="一阶矩的衰减率 beta1。", ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = setting(0.999, zh="二阶矩的衰减率 beta2。", ge=0, lt=1)
    """Decay of the second moment."""
    epsilon: float = setting(1e-8, zh="分母中的 epsilon。", gt=0)
    """Added to the denominator."""


def build(groups: Groups, config: Config) -> torch.optim.Optimizer:
    """bitsandbytes' paged AdamW. Raises UserError when bitsandbytes is not installed."""
    from tunesmith.train.optimizers.base import needs

    needs(config.kind, REQUIRES)
    from tunesmith.train.optimizers._bitsandbytes import AdamW

    return AdamW(groups, beta1=config.beta1, beta2=config.beta2, epsilon=config.epsilon, bits=32, paged=True)
