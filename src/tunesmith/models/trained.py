"""Weights that were learned in full and are kept alone: what they belong to, and how they get back into their base.

::

    trained_weights.safetensors    the learned tensors by parameter name
    trained_weights.json           the base's name; for an expanded model which layer came from which
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import UserError
from tunesmith.config.files import write_json
from tunesmith.models.expansion import Growth, stretch
from tunesmith.models.stored import check_shapes, read_tensors, write_tensors

if TYPE_CHECKING:
    import torch

STEM = "trained_weights"
DESCRIPTION = f"{STEM}.json"


@dataclass(frozen=True)
class Form:
    """What the weights belong to: the base's name, and how its layers were multiplied (None when they were not)."""

    base: str
    growth: Growth | None = None


def set_form(model: Any, form: Form) -> None:
    """Remember ``form`` with the model until it is saved."""
    model.tunesmith_form = form


def form_of(model: Any) -> Form:
    """What ``set_form`` was given."""
    form: Form = model.tunesmith_form
    return form


def write_trained(folder: Path, state: Mapping[str, torch.Tensor], form: Form) -> None:
    """Write tensors and description."""
    write_tensors(folder, state, STEM)
    growth = {"layers": list(form.growth.origins), "new": list(form.growth.new)} if form.growth is not None else {}
    write_json(folder / DESCRIPTION, {"base": form.base, **growth})


def read_form(folder: Path) -> Form:
    """The description. Raises UserError when it cannot be read."""
    try:
        raw = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        growth = Growth(tuple(raw["layers"]), tuple(raw["new"])) if "layers" in raw else None
        return Form(str(raw["base"]), growth)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / DESCRIPTION} cannot be read: {error!r}", hint="the checkpoint is damaged; take another"
        ) from error


def load_trained(model: Any, folder: Path) -> Any:
    """``model`` (the base) with the learned weights of ``folder`` in place of its own. Raises UserError when they do not fit."""
    import torch

    form = read_form(folder)
    if form.growth is not None:
        stretch(model, form.growth)
    stored = read_tensors(folder, STEM)
    own = dict(model.named_parameters())
    unknown = sorted(stored.keys() - own.keys())
    if unknown:
        raise UserError(
            f"{folder}: the model has no {unknown[0]}", hint=f"these weights were learned on {form.base}; use that as the base"
        )
    check_shapes(folder, stored, {name: tuple(p.shape) for name, p in own.items()})
    with torch.no_grad():
        for name, tensor in stored.items():
            own[name].copy_(tensor)
    return model
