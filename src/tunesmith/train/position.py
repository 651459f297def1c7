"""Where the loop stands: everything it decides by, kept in each checkpoint, so that a resumed run decides the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tunesmith.train.guards import Recent


@dataclass(frozen=True)
class Position:
    """After ``step`` optimizer steps."""

    step: int = 0
    tokens: int = 0
    """Tokens seen so far, prompts included."""
    best_eval: float | None = None
    """Lowest evaluation loss of a step from 1 on."""
    best_step: int | None = None
    mark: float | None = None
    """The loss that early stopping measures improvement from."""
    stale: int = 0
    """Evaluations in a row that did not improve on it."""
    last: dict[str, float] = field(default_factory=dict)
    """Latest figures (loss, eval_loss), so that a resumed run that has nothing left to do can still report them."""
    recent: Recent = field(default_factory=Recent)
    """What spikes are measured against."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Position:
        """From a checkpoint's JSON, of an older version too."""
        recent = Recent.of(values.get("recent", {}))
        known = {k: v for k, v in values.items() if k in cls.__dataclass_fields__}
        if "best_step" not in values:  # an older version: its best may be of before the first step
            known["best_eval"] = None
        return cls(**{**known, "recent": recent})

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def evaluated(self, loss: float, metrics: Mapping[str, float], min_delta: float) -> Position:
        """With the evaluation of this step taken in. What is measured before the first step is not a candidate for the best."""
        last = {**self.last, "eval_loss": loss, **{f"eval_{name}": value for name, value in metrics.items()}}
        if self.step == 0:
            return replace(self, last=last)
        better = self.best_eval is None or loss < self.best_eval
        improved = self.mark is None or loss < self.mark - min_delta
        return replace(
            self,
            best_eval=loss if better else self.best_eval,
            best_step=self.step if better else self.best_step,
            mark=loss if improved else self.mark,
            stale=0 if improved else self.stale + 1,
            last=last,
        )

    def result(self) -> dict[str, float]:
        """The figures a run ends with."""
        best = {} if self.best_step is None else {"best_eval_loss": self.best_eval or 0.0, "best_step": self.best_step}
        return {**self.last, **best}
