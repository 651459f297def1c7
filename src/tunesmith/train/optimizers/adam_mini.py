"""Adam-mini: one second moment for each dense block of the Hessian (Zhang et al., 2024, arXiv:2406.16793)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

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
    """Adam-mini: AdamW with one second moment per attention head, row or vector; half of its memory."""

    model_config = ConfigDict(
        json_schema_extra={"zh": "Adam-mini：每个块（注意力头、行或向量）只保留一个二阶矩，状态内存减半。"}
    )

    kind: Literal["adam_mini"] = "adam_mini"
    """Adam-mini."""
    head_dim: int | None = setting(None, zh="每个注意力头的维数（默认取自模型）。", ge=1)
    """Rows of the query and key projections that are one head; by default the model's own."""
    beta1: float = setting(0.9, zh="一阶矩的衰减率 beta1。", ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = setting(0.999, zh="二阶矩的衰减率 beta2。", ge=0, lt=1)
    """Decay of the second moment."""
    epsilon: float = setting(1e-8, zh="分母中的 epsilon。", gt=0)
    """Added to the denominator."""


def for_model(config: Config, model: Any) -> Config:
    """``config`` with the model's size of a head filled in."""
    text = model.config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    size = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else None)
    return config if config.head_dim is not None else config.model_copy(update={"head_dim": size})


def build(groups: Groups, config: Config) -> torch.optim.Optimizer:
    """Our own, after the paper."""
    from tunesmith.train.updates.adam_mini import AdamMini

    return AdamMini(groups, config)
