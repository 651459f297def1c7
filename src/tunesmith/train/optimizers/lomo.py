"""LOMO: SGD applied within the backward pass (Lv et al., 2023, arXiv:2306.09782); AdaLomo (arXiv:2310.10195)."""

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
IN_BACKWARD = True
"""Always steps within the backward pass, whatever ``train.update_in_backward`` says: that is what LOMO is."""


class Config(BaseConfig):
    """LOMO: plain SGD within the backward pass; no gradients and no optimizer state are kept."""

    model_config = ConfigDict(json_schema_extra={"zh": "LOMO：在反向传播中直接更新，不保存梯度与优化器状态。"})

    kind: Literal["lomo"] = "lomo"
    """LOMO."""
    adaptive: bool = setting(False, zh="AdaLomo：加入分解的二阶矩与更新归一化。")
    """AdaLomo: adaptive steps from row and column means of the squared gradients, normalized per matrix."""


def build(groups: Groups, config: Config) -> torch.optim.Optimizer:
    """Our own, after the papers."""
    from tunesmith.train.updates.lomo import AdaLomo, Lomo

    return AdaLomo(groups, config) if config.adaptive else Lomo(groups, config)
