"""A power of a straight line from the peak down; power 1 is the straight line."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting


class Config(BaseConfig):
    """A power of a straight line from the peak down."""

    model_config = ConfigDict(json_schema_extra={"zh": "多项式：直线的幂，从峰值下降。"})

    kind: Literal["polynomial"] = "polynomial"
    """Polynomial."""
    power: float = setting(2.0, zh="幂次：1 为直线，越大下降越早。", gt=0)
    """The power: 1 is a straight line, a larger one falls earlier."""
    min_ratio: float = setting(0.0, zh="最低学习率与峰值之比。", ge=0, le=1)
    """Lowest rate, as a share of the peak."""

    def factor(self, done: int, total: int) -> float:
        """m + (1 - m) (1 - done / total) ** power; m is ``min_ratio``."""
        return self.min_ratio + (1 - self.min_ratio) * (1 - done / max(1, total)) ** self.power
