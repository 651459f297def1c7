"""Muon: momentum made orthogonal, for hidden matrices (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/; sizes of
steps after Liu et al., 2025, arXiv:2502.16982). The rule is in ``_muon``."""

from __future__ import annotations

from collections.abc import Callable
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
    """Muon for matrices (LoRA's too), AdamW for embeddings, the output layer, norms and biases. Half of AdamW's memory; with
    ``scale: rms`` the learning rate and weight decay are AdamW's."""

    model_config = ConfigDict(
        json_schema_extra={
            "zh": "Muon：矩阵（含 LoRA）用正交化动量，词嵌入、输出层、归一化与偏置用 AdamW；状态约为 AdamW 的一半，scale 为 rms 时学习率与 AdamW 相同。"
        }
    )

    kind: Literal["muon"] = "muon"
    """Muon."""
    momentum: float = setting(0.95, zh="动量。", ge=0, lt=1)
    """Decay of the momentum."""
    nesterov: bool = setting(True, zh="使用 Nesterov 动量。")
    """Look ahead along the momentum (Nesterov)."""
    iterations: int = setting(5, zh="Newton-Schulz 迭代次数。", ge=1, lt=100)
    """Newton-Schulz iterations that make the momentum orthogonal."""
    scale: Literal["rms", "original"] = setting(
        "rms", zh="步长换算：rms 与 AdamW 的更新量相当（0.2 × √max(行, 列)）；original 为原版（√max(1, 行 / 列)）。"
    )
    """Size of a step: rms = as large as AdamW's, 0.2 sqrt(max(rows, columns)); original = sqrt(max(1, rows / columns))."""
    adamw_names: tuple[str, ...] = setting(
        ("embed", "lm_head", "wte", "wpe", "output_layer", "score"), zh="名称含有其中之一的参数由 AdamW 更新。"
    )
    """Parameters with one of these in their names are AdamW's; so is everything that is no matrix."""
    adamw_ratio: float = setting(1.0, zh="AdamW 部分的学习率与 train.lr 之比。", gt=0)
    """Learning rate of AdamW's parameters, as a multiple of ``train.lr``."""
    beta1: float = setting(0.9, zh="AdamW 一阶矩的衰减率。", ge=0, lt=1)
    """Decay of AdamW's first moment."""
    beta2: float = setting(0.999, zh="AdamW 二阶矩的衰减率。", ge=0, lt=1)
    """Decay of AdamW's second moment."""
    epsilon: float = setting(1e-8, zh="AdamW 分母中的 epsilon。", gt=0)
    """Added to AdamW's denominator."""


def build(groups: Groups, config: Config) -> torch.optim.Optimizer:
    """Muon and AdamW as one optimizer over ``groups``, each divided into its matrices and the rest."""
    from tunesmith.train.optimizers._muon import Muon

    def is_matrix(parameter: torch.Tensor, name: str) -> bool:
        whole = parameter.ndim in (2, 3) and min(parameter.shape[-2:]) > 1
        return whole and not any(part in name for part in config.adamw_names)

    return Muon(
        _part(groups, is_matrix, 1.0),
        _part(groups, lambda *parameter: not is_matrix(*parameter), config.adamw_ratio),
        momentum=config.momentum, nesterov=config.nesterov, iterations=config.iterations,
        match_rms=config.scale == "rms", betas=(config.beta1, config.beta2), epsilon=config.epsilon,
    )  # fmt: skip


def _part(groups: Groups, belongs: Callable[[torch.Tensor, str], bool], ratio: float) -> Groups:
    """The groups with only those parameters that belong, at ``ratio`` times their learning rate."""
    found = []
    for group in groups:
        chosen = [(p, name) for p, name in zip(group["params"], group["names"]) if belongs(p, name)]
        if chosen:
            parameters, names = map(list, zip(*chosen))
            rates = {"lr": group["lr"] * ratio, "lr_scale": group["lr_scale"] * ratio}
            found.append({**group, **rates, "params": parameters, "names": names})
    return found
