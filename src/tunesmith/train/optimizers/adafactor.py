"""Adafactor: the second moment as a row and a column (Shazeer & Stern, 2018, arXiv:1804.04235), torch's own."""

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
    """Adafactor: AdamW's adaptive steps with almost no memory. Steps are relative to the size of the weights, so ``train.lr`` is
    another number than AdamW's: 1e-2 in the paper, 1e-3 to 1e-2 for fine-tuning."""

    model_config = ConfigDict(
        json_schema_extra={
            "zh": "Adafactor：几乎不占显存的自适应步长；步长相对于权重大小，train.lr 取 1e-3 至 1e-2（论文为 1e-2）。"
        }
    )

    kind: Literal["adafactor"] = "adafactor"
    """Adafactor."""
    beta2_decay: float = setting(-0.8, zh="二阶矩衰减率的指数：第 t 步 beta2 = 1 - t ** beta2_decay。", le=0)
    """Exponent of the second moment's decay: beta2 = 1 - t ** beta2_decay at step t."""
    clip_threshold: float = setting(1.0, zh="更新量均方根的上限 d。", ge=1)
    """Largest root mean square of an update before it is scaled (d in the paper)."""
    min_scale: float = setting(1e-3, zh="权重均方根的下限：使接近零的权重也能学习（epsilon2）。", gt=0)
    """Weights smaller than this (root mean square) learn as if they were this large (epsilon 2 in the paper)."""


def build(groups: Groups, config: Config) -> torch.optim.Optimizer:
    """torch's Adafactor."""
    import torch

    return torch.optim.Adafactor(
        groups, beta2_decay=config.beta2_decay, eps=(None, config.min_scale), d=config.clip_threshold
    )
