"""What goes wrong with numbers in training, said in words."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.config.errors import TrainingError
from tunesmith.stages.base import Item


def non_finite(value: float, step: int, rate: float, rows: Sequence[Item], what: str = "loss") -> TrainingError:
    """The error for a loss or gradient norm that is not finite, with its likely cause."""
    origins = ", ".join(row.origin for row in rows[:3]) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")
    empty = [row.origin for row in rows if row.weight == 0]
    if empty:
        hint = f"rows without a learned token: {', '.join(empty[:3])}; `tunesmith data check` names them all"
    elif step <= 2:
        hint = "at the first steps this means broken weights or numbers too small for them: try precision=fp32, then another model file"
    else:
        hint = f"the learning rate {rate:.1e} is probably too high: resume from the last checkpoint with a smaller train.lr"
    return TrainingError(f"the {what} became {value} at step {step} (rows {origins}); training stopped", hint=hint)
