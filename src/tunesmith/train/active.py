"""Weights that sit a step out get no gradient in it: it is neither computed nor kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tunesmith.train.masters import Masters


@contextmanager
def only_active(masters: Masters, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within: of an optimizer that says ``active_names() -> set[str]`` (BAdam), only those parameters require gradients.

    Afterwards all of them do again, so that whatever looks at the model between steps finds it as it was built.
    """
    names = getattr(optimizer, "active_names", None)
    if names is None:
        yield
        return
    active = names()
    try:
        for name, (parameter, _) in masters.pairs.items():
            parameter.requires_grad_(name in active)
        yield
    finally:
        for parameter, _ in masters.pairs.values():
            parameter.requires_grad_(True)
