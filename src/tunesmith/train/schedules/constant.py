"""The peak to the end."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from tunesmith.config.base import Config as BaseConfig


class Config(BaseConfig):
    """The peak to the end."""

    model_config = ConfigDict(json_schema_extra={"zh": "恒定：保持峰值不变。"})

    kind: Literal["constant"] = "constant"
    """Constant."""

    def factor(self, done: int, total: int) -> float:
        """1."""
        return 1.0
