"""Schedule-free AdamW: an average of the weights in place of a falling learning rate (Defazio et al., 2024, arXiv:2405.15682)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import ConfigDict

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting

if TYPE_CHECKING:
    import torch

    from tunesmith.train.optimizers.base import Groups

REQUIRES = ("schedulefree", "schedule-free")


class Config(BaseConfig):
    """Schedule-free AdamW: the learning rate stays, the weights are averaged; good at every step, not only at the planned end.
    Learning rates are 1 to 10 times AdamW's."""

    model_config = ConfigDict(
        json_schema_extra={
            "zh": "免调度 AdamW：学习率保持不变，以权重平均代替衰减，任何一步都可用；学习率取 AdamW 的 1 至 10 倍。"
        }
    )
    SCHEDULE: ClassVar[str] = "constant"

    kind: Literal["schedule_free"] = "schedule_free"
    """Schedule-free AdamW."""
    beta1: float = setting(0.9, zh="训练点在平均权重与最新权重之间的位置 beta1。", gt=0, lt=1)
    """Where gradients are taken: this share at the average, the rest at the newest weights."""
    beta2: float = setting(0.999, zh="二阶矩的衰减率 beta2。", ge=0, lt=1)
    """Decay of the second moment."""
    epsilon: float = setting(1e-8, zh="分母中的 epsilon。", gt=0)
    """Added to the denominator."""
    average_power: float = setting(0.0, zh="平均时第 t 步的权重为 t 的几次方（r）。", ge=0)
    """Step t counts t to this power in the average (r in the package)."""
    lr_power: float = setting(2.0, zh="平均时权重随学习率的几次方变化（影响预热阶段）。", ge=0)
    """A step counts by its learning rate to this power, so that the warm-up counts little."""


def build(groups: Groups, config: Config) -> torch.optim.Optimizer:
    """The package's AdamW, in training mode. Raises UserError when ``schedulefree`` is not installed."""
    from tunesmith.train.optimizers.base import needs

    needs(config.kind, REQUIRES)
    from tunesmith.train.optimizers._schedule_free import ScheduleFree

    return ScheduleFree(
        groups, betas=(config.beta1, config.beta2), eps=config.epsilon, r=config.average_power, weight_lr_power=config.lr_power
    )  # fmt: skip
