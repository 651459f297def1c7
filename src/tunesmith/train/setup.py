"""What the loop works with, put together by the verb."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tunesmith.runs.folder import RunFolder
from tunesmith.stages.base import Generate, Item, Stage
from tunesmith.train.config import TrainConfig
from tunesmith.train.masters import Masters
from tunesmith.train.memory import MemoryPlan


@dataclass(frozen=True)
class Prompt:
    """A prompt that is answered while training: as it is shown, and as the model gets it."""

    text: str
    ids: Sequence[int]


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
    eval_sets: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """The rows of ``eval`` by the name of their set, when there are several; together all of them."""
    generate: Generate | None = None
    prompts: Sequence[Prompt] = ()
    """Answered by ``generate`` with each evaluation."""
    memory: MemoryPlan | None = None
    """What takes how much memory, and what is done when it runs out."""

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
