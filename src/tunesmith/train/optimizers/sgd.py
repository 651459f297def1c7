"""SGD with Nesterov momentum (Sutskever et al., 2013), torch's own."""

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
    """SGD: a step along the gradient, with momentum. Learning rates are a hundred times AdamW's and more (1e-2 to 1e-1)."""

    model_config = ConfigDict(
        json_schema_extra={"zh": "SGD：沿梯度更新并带动量；学习率约为 AdamW 的一百倍以上（1e-2 至 1e-1）。"}
    )

    kind: Literal["sgd"] = "sgd"
    """SGD."""
    momentum: float = setting(0.9, zh="动量；0 表示不用，也就没有任何优化器状态。", ge=0, lt=1)
    """Share of the last step that is taken again; 0 = none, and then no state at all."""
    nesterov: bool = setting(True, zh="使用 Nesterov 动量。")
    """Look ahead along the momentum (Nesterov)."""


def build(groups: Groups, config: Config) -> torch.optim.Optimizer:
    """torch's SGD; the whole step is one kernel where torch has one for the device."""
    import torch

    from tunesmith.train.optimizers.base import one_kernel

    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(groups, momentum=config.momentum, nesterov=nesterov, fused=one_kernel(groups))
