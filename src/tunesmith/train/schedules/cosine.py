"""Half a cosine from the peak down, once or again and again (Loshchilov & Hutter, 2016, arXiv:1608.03983)."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import ConfigDict

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting


class Config(BaseConfig):
    """Half a cosine from the peak to zero."""

    model_config = ConfigDict(json_schema_extra={"zh": "余弦：从峰值平滑降到零。"})

    kind: Literal["cosine"] = "cosine"
    """Cosine."""
    min_ratio: float = setting(0.0, zh="最低学习率与峰值之比。", ge=0, le=1)
    """Lowest rate, as a share of the peak."""
    cycles: int = setting(1, zh="周期数：大于 1 时每个周期重新从峰值开始。", ge=1)
    """How often it falls: with more than 1, each cycle starts at the peak again."""

    def factor(self, done: int, total: int) -> float:
        """m + (1 - m) 0.5 (1 + cos(pi x)); x is the place in the cycle, from 0 to 1, and m ``min_ratio``."""
        x = done * self.cycles % max(1, total) / max(1, total)
        return self.min_ratio + (1 - self.min_ratio) * 0.5 * (1 + math.cos(math.pi * x))
