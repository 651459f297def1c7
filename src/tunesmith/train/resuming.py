"""Going on from a checkpoint, and saying what is not as it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tunesmith.config.progress import Progress
from tunesmith.train import checkpoint
from tunesmith.train.machine import changed
from tunesmith.train.position import Position
from tunesmith.train.schedule import learning_rate
from tunesmith.train.setup import Setup


def resumed(
    setup: Setup, resume: tuple[Path, dict[str, torch.Tensor]], total: int, now: Mapping[str, Any], progress: Progress
) -> Position:
    """Bring the checkpoint's state back into ``setup`` and return its position. ``now``: the machine; ``total``: the plan."""
    folder, state = resume
    record = checkpoint.read(folder)
    position = checkpoint.load(folder, setup.masters, setup.optimizer, state)
    if words := changed(record.get("machine", {}), now):
        progress.say(words)
    if words := other_plan(setup, position.step, record.get("total_steps"), total):
        progress.say(words)
    return position


def other_plan(setup: Setup, step: int, before: int | None, total: int) -> str:
    """What another number of steps does to the learning rate; '' when it is the same (or not known: older checkpoints)."""
    if before is None or before == total:
        return ""
    config = setup.config

    def rate(at: int, of: int) -> float:
        return learning_rate(at, of, config.lr, config.schedule, config.warmup)

    following = rate(min(step + 1, total), total)
    return (
        f"the run now has {total} steps, it was planned with {before}: from step {step + 1} on the learning rate is that of the new "
        f"plan. It was {rate(max(1, min(step, before)), before):.2e} at step {step}, and goes on with {following:.2e}"
    )
