"""Which linear layers choose the experts of a mixture.

They get no adapter unless they are named in ``targets``: one that learns to send tokens to other experts undoes what these have learned.
"""

from __future__ import annotations

from typing import Any


def is_router(model: Any, name: str) -> bool:
    """Whether the linear layer ``name`` chooses experts: it is called so, and has one output for each of the experts beside it."""
    parts = name.split(".")
    if not any("router" in part or part == "gate" for part in parts[-2:]):
        return False
    outputs = getattr(model.get_submodule(name), "out_features", None)
    beside = [model.get_submodule(".".join(parts[:-up])) for up in (1, 2)]
    if any(p.ndim == 3 and p.shape[0] == outputs for module in beside for p in module.parameters()):
        return True
    lists: list[Any] = [getattr(module, "experts", None) for module in beside]
    return any(hasattr(experts, "__len__") and len(experts) == outputs for experts in lists)
