"""A straight line from the peak to zero."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from tunesmith.config.base import Config as BaseConfig


class Config(BaseConfig):
    """A straight line from the peak to zero."""

    model_config = ConfigDict(json_schema_extra={"zh": "线性：从峰值匀速降到零。"})

    kind: Literal["linear"] = "linear"
    """Linear."""

    def factor(self, done: int, total: int) -> float:
        """1 - done / total."""
        return 1 - done / max(1, total)
