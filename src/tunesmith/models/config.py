"""Which model, and in which numbers: the settings."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from tunesmith.config.base import Config, setting
from tunesmith.config.plugins import kind_union
from tunesmith.models.rope import RopeConfig

if TYPE_CHECKING:
    Quantize = Any
else:
    Quantize = kind_union("tunesmith.models.quantization", "bnb")

Precision = Literal["auto", "bf16", "fp16", "fp32", "pure_bf16"]
"""``pure_bf16``: bf16 without fp32 masters, rounded stochastically."""


class ModelConfig(Config):
    """The model to start from. A plain string is short for ``ref``."""

    shorthand: ClassVar[str] = "ref"

    ref: str = setting(
        ..., zh="起始模型：demo、文件夹、hf:组织/名称、ms:组织/名称 或 组织/名称。", basic=True, min_length=1
    )
    """The model to start from: demo, a folder, hf:org/name, ms:org/name or org/name."""
    template: str | None = setting(
        None,
        zh="对话模板：内置模板名（tunesmith data templates 可列出）或 .jinja 文件路径；不填则用模型自带的，模型没有时按词表选择。",
        min_length=1,
    )
    """Chat template in place of the model's own: a name (`tunesmith data templates` lists them) or the path of a .jinja
    file. It is saved with the model. By default the model's own; for a model without one, the one its vocabulary fits."""
    template_args: dict[str, Any] = setting(
        {}, zh="传给对话模板的额外变量，例如 {enable_thinking: false}；会写入随模型保存的模板。"
    )
    """Further variables for the chat template, for example {enable_thinking: false}; written into the template that is
    saved with the model."""
    quantize: Quantize | None = setting(
        None,
        zh="把冻结的基座模型量化后再训练（QLoRA）：bnb、hqq 或 fp8；不填则为 16 位。只适用于 LoRA 一类的适配器方法。",
    )
    """Quantize the frozen base while it is opened (QLoRA): bnb, hqq or fp8. Only for methods that learn beside the base,
    such as lora. By default the base stays in 16 bit. What is exported is merged into the 16-bit model."""
    trust_remote_code: bool = setting(False, zh="允许运行模型仓库自带的 Python 代码；只对你信任的模型打开。")
    """Run Python code that comes with the model's repository. Only for models you trust."""
    rope: RopeConfig | None = setting(None, zh="扩展上下文长度（RoPE 缩放）；不填则按模型原样。")
    """Stretch the positions so that the model reads longer texts than it was trained for; by default as the model is."""
    add_tokens: tuple[str, ...] = setting((), zh="加入词表的新词（整体成为一个 token）。")
    """Texts that become tokens of their own."""
    add_special_tokens: tuple[str, ...] = setting((), zh="加入词表的特殊 token（例如对话标记）；回答显示时会被略去。")
    """The same for special tokens (marks of a chat template, for example): they are left out of answers that are shown."""
    new_token_init: Literal["mean", "pieces"] = setting(
        "mean", zh="新 token 的初始向量：全部旧向量的平均（mean），或其原来各片段向量的平均（pieces）。"
    )
    """Where a new token's vectors start: the mean of all old ones, or of the pieces that its text consisted of before."""

    @field_validator("add_tokens", "add_special_tokens", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _each_once(self) -> ModelConfig:
        texts = [*self.add_tokens, *self.add_special_tokens]
        if any(not text.strip() for text in texts):
            raise ValueError("a new token is empty (or nothing but spaces)")
        twice = [text for text, count in Counter(texts).items() if count > 1]
        if twice:
            raise ValueError(f"the new token {twice[0]!r} is named twice")
        return self
