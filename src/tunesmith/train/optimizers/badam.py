"""BAdam: Adam on one block of the model at a time (Luo et al., 2024, arXiv:2404.02827)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting

if TYPE_CHECKING:
    import torch

    from tunesmith.train.optimizers.base import Groups

FOR_LARGE_MATRICES = True
"""Saves memory on the model's own weights; on small adapters there is nothing to save."""


class Config(BaseConfig):
    """BAdam: Adam on one layer of the model (or a share of each matrix) at a time."""

    model_config = ConfigDict(json_schema_extra={"zh": "BAdam：每次只用 Adam 训练模型的一个块，轮流进行。"})

    kind: Literal["badam"] = "badam"
    """BAdam."""
    mode: Literal["layer", "ratio"] = setting("layer", zh="块的划分：layer 逐层；ratio 每个矩阵的一部分元素。")
    """What is learned at a time: a layer of the model, or a share of the entries of every matrix."""
    switch_every: int = setting(50, zh="每多少步换一个块。", ge=1)
    """Optimizer steps until the next block; its moments begin anew."""
    order: Literal["ascending", "descending", "random", "fixed"] = setting(
        "ascending", zh="块的顺序：升序、降序、随机，或固定为一个块。"
    )
    """Order of the layers: up, down, a new permutation for each round, or always the same one."""
    start: int | None = setting(None, zh="从第几个块开始（从 0 计；默认第一个，降序时为最后一个）。", ge=0)
    """First block, counted from 0; by default the first one, in descending order the last one."""
    embeddings: bool = setting(False, zh="是否也训练嵌入层与输出层（默认保持不变）。")
    """Learn embeddings, final norm and output layer too, as one more block; by default they stay as they are."""
    ratio: float = setting(0.05, zh="ratio 模式下每个矩阵参与训练的元素比例。", gt=0, le=1)
    """Share of the entries of each matrix that is learned at a time (mode ratio)."""
    mask: Literal["adjacent", "scatter"] = setting("adjacent", zh="ratio 模式下选取的元素：相邻的一段，或随机散布。")
    """Which entries: a random stretch of the flattened matrix, or random places (mode ratio)."""
    seed: int = setting(0, zh="随机顺序与随机选取的种子。", ge=0)
    """Seed of the random order and of the random entries."""
    beta1: float = setting(0.9, zh="一阶矩的衰减率 beta1。", ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = setting(0.999, zh="二阶矩的衰减率 beta2。", ge=0, lt=1)
    """Decay of the second moment."""
    epsilon: float = setting(1e-8, zh="分母中的 epsilon。", gt=0)
    """Added to the denominator."""


def build(groups: Groups, config: Config) -> torch.optim.Optimizer:
    """Our own, after the paper. Raises ConfigError when there is no layer to learn."""
    from tunesmith.train.updates.badam import BAdam

    return BAdam(groups, config)
