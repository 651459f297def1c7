"""bitsandbytes' AdamW (MIT) with what the loop needs besides: a name for its state, and where that lies after a restart."""

from __future__ import annotations

import logging

import torch

from tunesmith.train.optimizers.base import Groups, on_cpu

_logger = logging.getLogger("bitsandbytes")
_level = _logger.level
_logger.setLevel(logging.ERROR)  # on import it warns of a 4-bit kernel that no optimizer uses
import bitsandbytes  # noqa: E402

_logger.setLevel(_level)

MOMENTS = ("state1", "state2")
"""The only tensors that are paged."""


class AdamW(bitsandbytes.optim.AdamW):
    """``bits`` of the moments: 8 or 32. ``paged``: on a GPU they lie in memory that the driver moves (CUDA's unified memory)."""

    def __init__(
        self, groups: Groups, *, beta1: float, beta2: float, epsilon: float, bits: int, paged: bool, min_8bit_size: int = 4096
    ) -> None:  # fmt: skip
        super().__init__(
            groups, betas=(beta1, beta2), eps=epsilon, optim_bits=bits, min_8bit_size=min_8bit_size,
            is_paged=paged and not on_cpu(groups),
        )  # fmt: skip
        self.state_kind = f"bitsandbytes.AdamW{bits}bit"

    def place_state(self, parameter: torch.nn.Parameter, key: str, value: torch.Tensor) -> torch.Tensor:
        """A restored moment in memory that bitsandbytes pages, as it was when it was made."""
        if not self.is_paged or key not in MOMENTS:
            return value
        made: torch.Tensor = self.get_state_buffer(parameter, dtype=value.dtype)
        return made.copy_(value)
