"""What the loop works with, put together by the verb."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.runs.folder import RunFolder
from tunesmith.stages.base import Item, Stage
from tunesmith.train.config import TrainConfig
from tunesmith.train.masters import Masters
from tunesmith.train.memory import MemoryPlan


@dataclass(frozen=True)
class Setup:
    """What the loop works with. ``save_model(folder, fp32 state by parameter name)`` writes the learned weights."""

    model: Any
    stage: Stage
    train: Sequence[Item]
    eval: Sequence[Item]
    config: TrainConfig
    run: RunFolder
    masters: Masters
    optimizer: torch.optim.Optimizer
    micro_tokens: int
    save_model: Callable[[Path, dict[str, torch.Tensor]], None]
    memory: MemoryPlan | None = None

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        found: torch.device = next(self.model.parameters()).device
        return found
