"""Which model, and in which numbers: the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tunesmith.config.base import Config, setting
from tunesmith.config.plugins import kind_union

if TYPE_CHECKING:
    Quantize = Any
else:
    Quantize = kind_union("tunesmith.models.quantization", "bnb")

Precision = Literal["auto", "bf16", "fp32"]


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
