"""An adapter in peft's format: written so that peft alone can use it on the untouched base, read back bit for bit."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import UserError
from tunesmith.models.adapters import chain, starts

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Origin:
    """How the model in training differs from the base on disk, besides the adapter on it."""

    merged: tuple[Path, ...] = ()
    """Adapters merged into it first."""
    factors: starts.Factors | None = None
    """What was taken from its weights to start from."""


def remember(model: Any, origin: Origin) -> Any:
    """``model`` with its origin noted, for ``save`` and ``load_state``."""
    model.adapter_origin = origin
    return model


def save(model: Any, folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Write the adapter of the peft ``model``. ``state``: its values (fp32) by parameter name."""
    from safetensors.torch import save_file

    origin: Origin = model.adapter_origin
    config = copy.deepcopy(model.peft_config["default"])
    config.inference_mode = True
    if origin.factors is not None:
        state = starts.plain(state, origin.factors)
        _double(config)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {stored: state[name].detach().contiguous().clone() for stored, name in learned(model).items()}
    save_file(tensors, folder / chain.WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    chain.write_needed(folder, origin.merged)


def load_state(folder: Path, model: Any) -> dict[str, torch.Tensor]:
    """The saved values by parameter name of ``model``: what ``save`` was given. Raises UserError."""
    from safetensors.torch import load_file

    stored = load_file(folder / chain.WEIGHTS)
    if model.adapter_origin.factors is not None:
        stored, _ = starts.halves(stored)
    wanted = learned(model)
    if odd := sorted(wanted.keys() ^ stored.keys()):
        raise UserError(
            f"{folder}: the saved adapter is not the one this run trains, they differ in {odd[0]}",
            hint="config.yaml of the run was changed, or the checkpoint belongs to another run",
        )
    return {name: stored[key] for key, name in wanted.items()}


def learned(model: Any) -> dict[str, str]:
    """Name on disk -> parameter of the peft ``model`` that is learned. A tied one has two names there, as peft reads it."""
    first: dict[int, str] = {}
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            found[stored_name(name)] = first.setdefault(id(parameter), name)
    return found


def saved_factors(folder: Path, names: list[str]) -> starts.Factors:
    """A₀ and B₀ that the run of this checkpoint started from, by the parameter ``names``."""
    from safetensors.torch import load_file

    _, factors = starts.halves(load_file(folder / chain.WEIGHTS))
    return {name: factors[stored_name(name)] for name in names if stored_name(name) in factors}


def stored_name(parameter: str) -> str:
    """What peft calls a parameter on disk: without the adapter's name, and the magnitudes of DoRA without ``.weight``."""
    if parameter.endswith(".lora_magnitude_vector.default.weight"):
        return parameter.removesuffix(".default.weight")
    return parameter.replace(".modules_to_save.default", "").replace(".default", "")


def _double(config: Any) -> None:
    """Twice the rank, the same scale: alpha / r, or alpha / sqrt(r) with rsLoRA."""
    factor = math.sqrt(2) if config.use_rslora else 2
    config.r *= 2
    config.lora_alpha *= factor
    config.rank_pattern = {key: 2 * rank for key, rank in (config.rank_pattern or {}).items()}
    config.alpha_pattern = {key: factor * alpha for key, alpha in (config.alpha_pattern or {}).items()}
