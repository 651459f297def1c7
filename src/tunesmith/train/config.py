"""How long, how fast and how often: the settings of the training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from tunesmith.config.base import Config, setting
from tunesmith.config.plugins import kind_union, names
from tunesmith.config.plugins import load as load_plugin

OPTIMIZERS = "tunesmith.train.optimizers"

if TYPE_CHECKING:
    Optimizer = Any
    Schedule = Any
else:
    Optimizer = kind_union(OPTIMIZERS, "adamw")
    Schedule = kind_union("tunesmith.train.schedules", "cosine")


class TrainConfig(Config):
    """The training loop."""

    epochs: float = setting(3.0, zh="把训练数据完整学几遍。", basic=True, gt=0)
    """How many times the training rows are gone through."""
    max_steps: int | None = setting(None, zh="最多训练多少步（设置后优先于 epochs）。", ge=1)
    """Stop after this many optimizer steps, whatever epochs says."""
    batch: int = setting(16, zh="每个优化步包含多少个对话。", basic=True, ge=1)
    """Conversations per optimizer step."""
    lr: float = setting(2e-4, zh="学习率峰值。", basic=True, gt=0)
    """Peak learning rate."""
    optimizer: Optimizer = setting({"kind": "adamw"}, zh="优化器。")
    """The optimizer."""
    schedule: Schedule = setting({"kind": "cosine"}, zh="预热之后学习率的变化方式。")
    """How the learning rate falls after the warm-up."""
    warmup: float = setting(0.05, zh="预热：小于 1 为占总步数的比例，否则为步数。", ge=0)
    """Warm-up: a share of all steps when below 1, else a number of steps."""
    weight_decay: float = setting(0.0, zh="权重衰减（偏置与归一化层除外）。", ge=0)
    """Weight decay (not of norms and biases)."""
    clip: float = setting(1.0, zh="梯度裁剪：全局范数上限（0 表示不裁剪）。", ge=0)
    """Largest global norm of the gradient; 0 = no clipping."""
    packing: bool = setting(True, zh="把多个对话无填充地拼在一起计算（互不可见），结果相同但更快。")
    """Compute several conversations in one row without padding; they do not see each other. Same loss, faster."""
    micro_tokens: int | None = setting(None, zh="一次前向计算最多多少 token（默认按设备选择）。", ge=16)
    """Most tokens of one forward pass; by default chosen for the device (512 on CPU, 8192 on a GPU)."""
    gradient_checkpointing: bool | Literal["auto"] = setting(
        "auto", zh="重算激活以省内存（更慢）；auto 表示放不下时才用。"
    )
    """Recompute activations to save memory, at some speed; auto = only when they would not fit."""
    update_in_backward: bool | Literal["two_passes"] = setting(
        False, zh="在反向传播中逐个张量更新，梯度不同时存在；two_passes 先测全局范数再更新（更慢）。"
    )
    """Move each weight as soon as its gradient is there, so that gradients never live together; a step is then one forward
    pass, and clip bounds each tensor's norm. two_passes = measure the global norm first, at the cost of another backward pass."""
    eval_every: int | None = setting(None, zh="每多少步评估一次（默认每轮结束时）。", ge=1)
    """Evaluate after this many steps; by default at the end of each epoch."""
    save_every: int | None = setting(None, zh="每多少步保存一次检查点（默认每轮结束时）。", ge=1)
    """Save a checkpoint after this many steps; by default at the end of each epoch."""
    keep: int = setting(2, zh="保留最近多少个检查点。", ge=1)
    """How many of the newest checkpoints are kept."""
    seed: int = setting(42, zh="随机种子：数据顺序、划分与初始化。", ge=0)
    """Seed of the data order, the evaluation split and the initialization."""

    @property
    def in_backward(self) -> bool:
        """Whether weights are moved within the backward pass; some optimizers always do it."""
        plugin = load_plugin(OPTIMIZERS, self.optimizer.kind)
        return bool(self.update_in_backward or getattr(plugin, "IN_BACKWARD", False))

    @model_validator(mode="after")
    def _can_step_tensor_by_tensor(self) -> TrainConfig:
        kind = self.optimizer.kind
        if self.in_backward and not getattr(load_plugin(OPTIMIZERS, kind), "PER_TENSOR", False):
            can = [name for name in names(OPTIMIZERS) if getattr(load_plugin(OPTIMIZERS, name), "PER_TENSOR", False)]
            raise ValueError(
                f"update_in_backward needs an optimizer that steps each tensor on its own ({', '.join(can)}), not {kind}"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _as_it_was_written_before(cls, value: Any) -> Any:
        """AdamW's numbers stood beside the learning rate in configs of version 0.1.0."""
        old = {"beta1", "beta2", "epsilon"}
        if isinstance(value, dict) and old & value.keys() and value.get("optimizer", "adamw") == "adamw":
            moved = {key: value[key] for key in old & value.keys()}
            return {k: v for k, v in value.items() if k not in old} | {"optimizer": {"kind": "adamw", **moved}}
        return value
