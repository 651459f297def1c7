"""Warm-up, stable, decay (Hu et al., 2024, arXiv:2404.06395): the peak for most of the run, then a short fall. A run can be made longer
by going on from before the fall. The shape 1 - sqrt is from Hägele et al., 2024, arXiv:2405.18392."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import ConfigDict

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting


class Config(BaseConfig):
    """The peak for most of the run, then a short fall."""

    model_config = ConfigDict(json_schema_extra={"zh": "WSD：大部分时间保持峰值，最后一小段下降。"})

    kind: Literal["wsd"] = "wsd"
    """Warm-up, stable, decay."""
    decay: float = setting(0.2, zh="下降段占预热后步数的比例。", gt=0, le=1)
    """The fall's share of the steps after the warm-up."""
    shape: Literal["linear", "cosine", "sqrt"] = setting("sqrt", zh="下降的形状；sqrt 为 1 - √x，先快后慢。")
    """Shape of the fall; sqrt = 1 - sqrt(x), steep first."""
    min_ratio: float = setting(0.0, zh="最低学习率与峰值之比。", ge=0, le=1)
    """Lowest rate, as a share of the peak."""

    def factor(self, done: int, total: int) -> float:
        """1 until the last round(decay * total) steps; there m + (1 - m) f(x), x from 0 to 1 and m ``min_ratio``."""
        fall = max(1, round(self.decay * total))
        x = (done - (total - fall)) / fall
        if x <= 0:
            return 1.0
        falls = {"linear": 1 - x, "cosine": 0.5 * (1 + math.cos(math.pi * x)), "sqrt": 1 - math.sqrt(x)}
        return self.min_ratio + (1 - self.min_ratio) * falls[self.shape]
