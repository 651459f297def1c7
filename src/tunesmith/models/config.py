"""Which model, and in which numbers: the settings."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from tunesmith.config.base import Config, setting

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
    trust_remote_code: bool = setting(False, zh="允许运行模型仓库自带的 Python 代码；只对你信任的模型打开。")
    """Run Python code that comes with the model's repository. Only for models you trust."""
