"""How long, how fast and how often: the settings of the training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeInt, field_validator, model_validator

from tunesmith.config.base import Config, setting
from tunesmith.config.plugins import config_of, kind_union, names
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
    max_tokens: int | None = setting(
        None, zh="最多训练多少 token，含提示部分（设置后优先于 epochs；与 max_steps 以先到者为准）。", ge=1
    )
    """Stop with the step that brings the tokens seen (prompts included) to this number, whatever epochs says."""
    batch: int = setting(16, zh="每个优化步包含多少个对话。", basic=True, ge=1)
    """Conversations per optimizer step."""
    batch_tokens: int | None = setting(
        None, zh="每个优化步最多多少 token，代替 batch：按顺序取对话直到装满（总步数随之改变）。", ge=16
    )
    """Tokens per optimizer step in place of batch: conversations are taken in their order until the next one would not fit."""
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
    micro_tokens: int | None = setting(None, zh="一次前向计算最多多少 token（默认按设备及其显存选择）。", ge=16)
    """Most tokens of one forward pass; by default chosen for the device (512 on CPU; on a GPU 2048 to 16384 by its memory)."""
    neftune_alpha: float | None = setting(None, zh="NEFTune：训练时给词向量加的噪声强度 alpha（常用 5 到 15）。", gt=0)
    """NEFTune: noise of this strength alpha on the embeddings in training (5 to 15 is usual); by default none."""
    gradient_checkpointing: bool | NonNegativeInt | Literal["auto"] = setting(
        "auto",
        zh="重算激活以省内存（更慢，结果不变）：auto 只重算放得下所必需的层数，true 全部层，false 不重算，也可写层数。",
    )
    """Compute layers twice to save memory, at some speed and with the same result: auto = as many as it takes to fit, none
    if it fits; true = all; false = none, whatever happens; or a number of layers. Where memory runs out, more are."""
    activation_offload: bool = setting(
        False,
        zh="把为反向传播保存的激活放到 CPU 内存：重算层的输入；gradient_checkpointing=false 时为各层保存的全部激活。",
    )
    """Keep in the CPU's memory what waits for the backward pass: the inputs of the layers that are computed twice; with
    gradient_checkpointing=false all that the layers keep. Same result; changes nothing on a CPU."""
    router_loss: float | None = setting(
        None, zh="混合专家模型：路由均衡损失的系数；默认取模型配置里的值，0 表示不用。", ge=0
    )
    """Mixture-of-experts models: coefficient of the router loss, which keeps the experts evenly used. Default: the one in
    the model's own config; 0 = none."""
    update_in_backward: bool | Literal["two_passes"] = setting(
        False, zh="在反向传播中逐个张量更新，梯度不同时存在；two_passes 先测全局范数再更新（更慢）。"
    )
    """Move each weight as soon as its gradient is there, so that gradients never live together; a step is then one forward
    pass, and clip bounds each tensor's norm. two_passes = measure the global norm first, at the cost of another backward pass."""
    eval_every: int | None = setting(None, zh="每多少步评估一次（默认每轮结束时）。", ge=1)
    """Evaluate after this many steps; by default at the end of each epoch."""
    eval_at_start: bool = setting(True, zh="训练开始前先评估一次，作为比较的起点。")
    """Evaluate once before the first step, to have something to compare with."""
    early_stopping: int | None = setting(None, zh="评估损失连续多少次没有改善就提前结束（默认不提前结束）。", ge=1)
    """End the run when the evaluation loss has not improved in this many evaluations; by default it goes to its end."""
    min_delta: float = setting(0.0, zh="提前结束：损失至少降低多少才算改善。", ge=0)
    """Early stopping: by how much the loss must fall to count as an improvement."""
    samples: int = setting(0, zh="每次评估时，对多少条留出的提问生成回答，写入 artifacts/samples.jsonl。", ge=0, le=64)
    """With each evaluation the prompts of this many held-out rows are answered, into artifacts/samples.jsonl."""
    sample_prompts: tuple[str, ...] = setting((), zh="每次评估时还要回答的提问。")
    """Prompts that are answered with each evaluation besides."""
    sample_tokens: int = setting(64, zh="这些回答每条最多多少 token。", ge=1)
    """Most tokens of such an answer."""
    save_every: int | None = setting(None, zh="每多少步保存一次检查点（默认每轮结束时）。", ge=1)
    """Save a checkpoint after this many steps; by default at the end of each epoch."""
    keep: int = setting(2, zh="保留最近多少个检查点。", ge=1)
    """How many of the newest checkpoints are kept."""
    save_minutes: float | None = setting(None, zh="距上次保存超过多少分钟就再保存一次检查点。", gt=0)
    """Save a checkpoint when the last one is this many minutes old, besides save_every."""
    keep_best: bool = setting(True, zh="评估损失创新低时保存检查点，并一直保留最好的那个（run:ID@best）。")
    """Save a checkpoint when the evaluation loss is the lowest so far, and keep the best one (run:ID@best)."""
    on_spike: Literal["warn", "skip", "stop"] = setting(
        "warn", zh="损失或梯度突然远超近期水平时：警告并继续、跳过这一步的更新，或停止。"
    )
    """When the loss or the gradient leaps far above the recent steps: say so and go on, leave that step's update out, or stop."""
    seed: int = setting(42, zh="随机种子：数据顺序、划分与初始化。", ge=0)
    """Seed of the data order, the evaluation split and the initialization."""
    deterministic: bool = setting(False, zh="只用确定性算法（GPU 上较慢），同样的运行得到完全相同的数值。")
    """Deterministic algorithms only (slower on a GPU): the same run gives the same numbers, bit by bit."""
    profile: int = setting(0, zh="用 torch profiler 记录多少个优化步（0 表示不记录）。", ge=0, le=100)
    """Record this many optimizer steps with torch's profiler (0 = none)."""

    @field_validator("sample_prompts", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

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
        if self.in_backward and self.on_spike == "skip":
            raise ValueError(
                "on_spike=skip cannot take back a step within the backward pass (update_in_backward, lomo): use warn or stop"
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

    @model_validator(mode="before")
    @classmethod
    def _schedule_of_the_optimizer(cls, value: Any) -> Any:
        """An optimizer that makes sense with one schedule only gets it when none is named, and no other."""
        if not isinstance(value, dict):
            return value
        kind = _kind(value.get("optimizer"))
        wanted = getattr(config_of(OPTIMIZERS, kind), "SCHEDULE", None) if kind in names(OPTIMIZERS) else None
        if wanted is None:
            return value
        if _kind(value.get("schedule", wanted)) != wanted:
            raise ValueError(f"the optimizer {kind} needs schedule={wanted}, any other would work against it")
        return {"schedule": wanted, **value}


def _kind(value: Any) -> Any:
    """The kind of a plug-in as written: a text, a mapping or a config."""
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", value)
