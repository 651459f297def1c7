"""Which model, and in which numbers: the settings."""

from __future__ import annotations

from typing import ClassVar, Literal

from tunesmith.config.base import Config, setting

Precision = Literal["auto", "bf16", "fp32"]


class ModelConfig(Config):
    """The model to start from. A plain string is short for ``ref``."""

    shorthand: ClassVar[str] = "ref"

    ref: str = setting(
        ..., zh="起始模型：demo、文件夹、hf:组织/名称、ms:组织/名称 或 组织/名称。", basic=True, min_length=1
    )
    """The model to start from: demo, a folder, hf:org/name, ms:org/name or org/name."""
    trust_remote_code: bool = setting(False, zh="允许运行模型仓库自带的 Python 代码；只对你信任的模型打开。")
    """Run Python code that comes with the model's repository. Only for models you trust."""
