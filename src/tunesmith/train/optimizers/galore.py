"""GaLore: Adam in the subspace of the gradient's leading singular vectors (Zhao et al., 2024, arXiv:2403.03507)."""

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
FOR_LARGE_MATRICES = True
"""Saves memory on the model's own weights; on small adapters there is nothing to save."""


class Config(BaseConfig):
    """GaLore: Adam on low-rank projections of the gradients of the linear layers."""

    model_config = ConfigDict(json_schema_extra={"zh": "GaLore：在梯度的低秩子空间中做 Adam，节省优化器状态。"})

    kind: Literal["galore"] = "galore"
    """GaLore."""
    rank: int = setting(128, zh="子空间的秩 r。", ge=1)
    """Rank r of the subspace; matrices no larger than it are learned by plain AdamW."""
    update_gap: int = setting(200, zh="每多少步重新计算一次投影（SVD）。", ge=1)
    """Steps between two singular value decompositions of a gradient."""
    scale: float = setting(0.25, zh="投影回原空间后更新的缩放系数。", gt=0)
    """Factor of the projected update; the learning rate of these matrices is lr x scale."""
    beta1: float = setting(0.9, zh="一阶矩的衰减率 beta1。", ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = setting(0.999, zh="二阶矩的衰减率 beta2。", ge=0, lt=1)
    """Decay of the second moment."""
    epsilon: float = setting(1e-8, zh="分母中的 epsilon。", gt=0)
    """Added to the denominator."""


def build(groups: Groups, config: Config) -> torch.optim.Optimizer:
    """Our own, after the paper."""
    from tunesmith.train.updates.galore import GaLore

    return GaLore(groups, config)
