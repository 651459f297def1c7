"""APOLLO: SGD whose rate per channel is learned in a random subspace (Zhu et al., 2024, arXiv:2412.05270)."""

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
    """APOLLO: gradients of the linear layers scaled by channel, with Adam on a small random projection of them."""

    model_config = ConfigDict(json_schema_extra={"zh": "APOLLO：用随机低秩投影估计每个通道的步长，内存接近 SGD。"})

    kind: Literal["apollo"] = "apollo"
    """APOLLO."""
    mini: bool = setting(False, zh="APOLLO-Mini：秩为 1，整个矩阵共用一个缩放系数。")
    """APOLLO-Mini: rank 1 and one scaling factor for each matrix; rank is not used."""
    rank: int = setting(128, zh="随机子空间的秩 r。", ge=1)
    """Rank r of the random subspace; matrices no larger than it are learned by plain AdamW."""
    update_gap: int = setting(200, zh="每多少步重新抽取一次随机投影。", ge=1)
    """Steps after which another random projection is drawn."""
    scale: float | None = setting(None, zh="更新的缩放系数（默认 1；mini 时为 128 的平方根）。", gt=0)
    """Factor of the update. Default: 1, with mini the square root of 128."""
    growth: float = setting(1.01, zh="相邻两步更新范数的最大增长倍数（0 表示不限制）。", ge=0)
    """The norm of a matrix's scaled gradient may grow by this factor at most from step to step; 0 = no limit."""
    seed: int = setting(0, zh="随机投影的种子。", ge=0)
    """Seed of the random projections."""
    beta1: float = setting(0.9, zh="一阶矩的衰减率 beta1。", ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = setting(0.999, zh="二阶矩的衰减率 beta2。", ge=0, lt=1)
    """Decay of the second moment."""
    epsilon: float = setting(1e-8, zh="分母中的 epsilon。", gt=0)
    """Added to the denominator."""

    @property
    def resolved_scale(self) -> float:
        """The scale with its default filled in."""
        return self.scale if self.scale is not None else (128.0**0.5 if self.mini else 1.0)


def build(groups: Groups, config: Config) -> torch.optim.Optimizer:
    """Our own, after the paper."""
    from tunesmith.train.updates.apollo import Apollo

    return Apollo(groups, config)
