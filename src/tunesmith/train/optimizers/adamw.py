"""AdamW: Adam with decoupled weight decay (Loshchilov & Hutter, 2017, arXiv:1711.05101), torch's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting

if TYPE_CHECKING:
    import torch

    from tunesmith.train.optimizers.base import Groups

PER_TENSOR = True
"""Each tensor's step needs its own gradient only."""


class Config(BaseConfig):
    """AdamW: adaptive steps with decoupled weight decay."""

    model_config = ConfigDict(json_schema_extra={"zh": "AdamW：自适应步长，权重衰减解耦。"})

    kind: Literal["adamw"] = "adamw"
    """AdamW."""
    beta1: float = setting(0.9, zh="一阶矩的衰减率 beta1。", ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = setting(0.999, zh="二阶矩的衰减率 beta2。", ge=0, lt=1)
    """Decay of the second moment."""
    epsilon: float = setting(1e-8, zh="分母中的 epsilon。", gt=0)
    """Added to the denominator."""


def build(groups: Groups, config: Config) -> torch.optim.Optimizer:
    """torch's AdamW; the whole step is one kernel where torch has one for the device."""
    import torch

    from tunesmith.train.optimizers.base import one_kernel

    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=one_kernel(groups))
