"""Lion: steps of one size, only their signs are learned (Chen et al., 2023, arXiv:2302.06675). The rule is in ``_lion``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting

if TYPE_CHECKING:
    import torch

    from tunesmith.train.optimizers.base import Groups

PER_TENSOR = True
"""The step of a tensor needs its own gradient only (``train.backward``)."""


class Config(BaseConfig):
    """Lion: the sign of a momentum, half of AdamW's memory. The paper takes a learning rate 3 to 10 times smaller than AdamW's
    and a weight decay as many times larger."""

    model_config = ConfigDict(
        json_schema_extra={
            "zh": "Lion：只取动量的符号，状态为 AdamW 的一半；学习率取 AdamW 的 1/3 至 1/10，权重衰减相应放大。"
        }
    )

    kind: Literal["lion"] = "lion"
    """Lion."""
    beta1: float = setting(0.9, zh="更新方向中动量的份额 beta1。", ge=0, lt=1)
    """Share of the momentum in the direction of a step."""
    beta2: float = setting(0.99, zh="动量的衰减率 beta2。", ge=0, lt=1)
    """Decay of the momentum."""


def build(groups: Groups, config: Config) -> torch.optim.Optimizer:
    """Lion over ``groups``."""
    from tunesmith.train.optimizers._lion import Lion

    return Lion(groups, config.beta1, config.beta2)
