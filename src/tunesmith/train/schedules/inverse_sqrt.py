"""One over the square root of time (Vaswani et al., 2017, arXiv:1706.03762, section 5.3): falls for ever, without a planned end."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import ConfigDict

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting


class Config(BaseConfig):
    """One over the square root of time."""

    model_config = ConfigDict(json_schema_extra={"zh": "平方根倒数：随时间的平方根下降，没有预定的终点。"})

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"
    """Inverse square root."""
    timescale: int | None = setting(
        None, zh="预热后经过多少步降到峰值的 0.71（默认为预热后总步数的二十分之一）；通常取预热步数。", ge=1
    )
    """Steps after the warm-up until the rate has fallen to 0.71 of the peak, usually as many as the warm-up has; by default a
    twentieth of the steps after it."""

    def factor(self, done: int, total: int) -> float:
        """1 / sqrt(1 + done / timescale)."""
        return 1 / math.sqrt(1 + done / (self.timescale or max(1, math.ceil(total / 20))))
