"""The ``schedulefree`` package's AdamW (Apache 2.0) with evaluation weights that leave no trace in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import schedulefree
import torch


class ScheduleFree(schedulefree.AdamWScheduleFree):
    """Always in the package's training mode, except within ``evaluation_weights``."""

    def __init__(self, groups: Any, **settings: Any) -> None:
        super().__init__(groups, **settings)
        self.train()

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Within, the parameters hold the average. The package computes the training weights back from it, which rounds: how
        often a run is evaluated or saved would change it. So they are kept, for that time (as much memory as the parameters)."""
        kept = [(p, p.detach().clone()) for group in self.param_groups for p in group["params"]]
        try:
            self.eval()
            yield
        finally:
            self.train()
            with torch.no_grad():
                for parameter, value in kept:
                    parameter.copy_(value)
