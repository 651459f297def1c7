"""The state of any torch optimizer as plain tensors and JSON, by parameter name; nothing is pickled.

``tensors``: ``<parameter>|<key>`` -> tensor. ``record``: numbers and texts of the state and of the parameter groups (those that
optimizers count with, such as a schedule-free one's weight sum).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def dump(
    optimizer: torch.optim.Optimizer, named: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and record. ``named``: the optimizer's parameters by name."""
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for name, parameter in named.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if torch.is_tensor(value):
                tensors[f"{name}|{key}"] = value.detach().contiguous()
            else:
                plain.setdefault(name, {})[key] = value
    groups = [{k: v for k, v in group.items() if k not in ("params", "names")} for group in optimizer.param_groups]
    return tensors, {"state": plain, "groups": groups}


def restore(
    optimizer: torch.optim.Optimizer,
    named: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    record: Mapping[str, Any],
) -> None:
    """Bring back what ``dump`` gave. Each tensor goes to its parameter's device in its own type."""
    by_name: dict[str, dict[str, Any]] = {name: dict(values) for name, values in record["state"].items()}
    for place, value in tensors.items():
        name, _, key = place.rpartition("|")
        device = value.device if key == "step" else named[name].device
        by_name.setdefault(name, {})[key] = value.to(device)
    for name, parameter in named.items():
        if name in by_name:
            optimizer.state[parameter] = by_name[name]
    for group, kept in zip(optimizer.param_groups, record["groups"]):
        group.update({k: tuple(v) if isinstance(v, list) else v for k, v in kept.items()})
