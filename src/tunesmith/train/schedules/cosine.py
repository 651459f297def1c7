"""Half a cosine from the peak to zero (Loshchilov & Hutter, 2016, arXiv:1608.03983, one period)."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import ConfigDict

from tunesmith.config.base import Config as BaseConfig


class Config(BaseConfig):
    """Half a cosine from the peak to zero."""

    model_config = ConfigDict(json_schema_extra={"zh": "余弦：从峰值平滑降到零。"})

    kind: Literal["cosine"] = "cosine"
    """Cosine."""

    def factor(self, done: int, total: int) -> float:
        """0.5 (1 + cos(pi x)), x = done / total."""
        return 0.5 * (1 + math.cos(math.pi * done / max(1, total)))
