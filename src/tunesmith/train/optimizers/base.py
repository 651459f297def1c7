"""The protocol of an optimizer: one file each, with a ``Config`` (with ``kind``) and ``build``.

    build(groups, config) -> torch.optim.Optimizer

``groups``: torch parameter groups. Besides ``params`` each has ``names`` (the parameter's name in the model, one for each),
``lr_scale`` (the loop sets ``lr = rate * lr_scale`` before every step) and ``weight_decay``. Everything that the next
step depends on lies in ``optimizer.state`` and ``optimizer.param_groups``: ``train.optimizer_state`` keeps it without pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Groups = list[dict[str, Any]]


def parameter_groups(
    tensors: Mapping[str, torch.nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    lr_scales: Mapping[str, float] | None = None,
) -> Groups:
    """``tensors`` by name -> groups; vectors (norms, biases) are not decayed. ``lr_scales``: name -> factor, 1 unless given."""
    found: dict[tuple[float, float], dict[str, Any]] = {}
    for name, tensor in tensors.items():
        decay = weight_decay if tensor.ndim >= 2 else 0.0
        scale = (lr_scales or {}).get(name, 1.0)
        group = found.setdefault(
            (scale, decay), {"params": [], "names": [], "lr": lr * scale, "lr_scale": scale, "weight_decay": decay}
        )
        group["params"].append(tensor)
        group["names"].append(name)
    return list(found.values())
