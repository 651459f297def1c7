"""Mixtures of experts under adapters: which layers choose the experts, and which names peft would take for others.

The layers that choose (routers) stay as they are unless they are named in ``targets``: an adapter on them learns to send tokens elsewhere before
it learns anything else. Experts that are one 3D parameter are adapted with ``experts``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def is_mixture(model: Any) -> bool:
    """Whether experts lie in fused 3D weights."""
    return any(p.ndim == 3 and "expert" in name for name, p in model.named_parameters()) or _routes(model)


def _routes(model: Any) -> bool:
    return any(name.endswith((".router", ".gate", "router.layer")) for name, _ in model.named_modules())


def is_router(model: Any, name: str) -> bool:
    """Whether the linear layer ``name`` chooses experts: it is called so, and has an output for each of the experts beside it."""
    parts = name.split(".")
    if not any("router" in part or part == "gate" for part in parts[-2:]):
        return False
    outputs = getattr(model.get_submodule(name), "out_features", None)
    above = [model.get_submodule(".".join(parts[:-n])) for n in (1, 2)]
    fused = any(p.ndim == 3 and p.shape[0] == outputs for module in above for p in module.parameters())
    return fused or any(len(getattr(module, "experts", ()) or ()) == outputs for module in above if _listed(module))


def _listed(module: Any) -> bool:
    return hasattr(getattr(module, "experts", None), "__len__")


def kept_by_peft(model: Any, names: Sequence[str]) -> list[str]:
    """Those of ``names`` that peft takes for what they are.

    For mixtures that transformers once stored as single layers, peft reads ``gate_proj``, ``up_proj`` and ``down_proj`` (``w1`` … in Mixtral) as the
    fused experts, wherever in the model they are, when the adapter is made and whenever it is loaded.
    """
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # releases without that reading
        return list(names)
    kept = []
    for name in names:
        config = LoraConfig(target_modules=[name])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:  # one of a pair that it wants together
            continue
        if name in (config.target_modules or ()):
            kept.append(name)
    return kept
