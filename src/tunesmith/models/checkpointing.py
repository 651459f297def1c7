"""Gradient checkpointing, layer by layer: a checkpointed layer keeps only its input and is computed again in the backward
pass (Chen et al., 2016, arXiv:1604.06174). The result is the same bit for bit; each such layer costs a second forward pass.

Which layers there are is known here; how many are needed is decided elsewhere (``models.activations``, ``train.memory``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from tunesmith.models.offload import Offload


def decoder_layers(model: Any) -> list[torch.nn.Module]:
    """The layers of the text model, in order, whatever wraps it (peft, a multimodal model).

    They are the ``ModuleList`` of layers that transformers can checkpoint, within the decoder where the model names one.
    Empty for a model without such a list.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    text = base.get_decoder() if hasattr(base, "get_decoder") else base
    wanted = getattr(base.config.get_text_config(), "num_hidden_layers", None) if hasattr(base, "config") else None
    for root in (text, base):
        lists = [
            list(module)
            for module in (root.modules() if root is not None else ())
            if isinstance(module, torch.nn.ModuleList)
            and len(module) > 0
            and all(isinstance(layer, GradientCheckpointingLayer) for layer in module)
        ]
        if lists:
            return next((layers for layers in lists if len(layers) == wanted), max(lists, key=len))
    return []


def checkpoint_layers(layers: Sequence[torch.nn.Module], count: int, offload: Offload | None = None) -> None:
    """Compute the first ``count`` of ``layers`` twice, the others once. May be called again with another count.

    The first ones, because the backward pass comes to them last: what the others kept is free again when they are
    computed the second time. With ``offload`` the inputs that are kept lie in the memory of the CPU.
    """
    compute_twice = _checkpoint_function(offload)
    for number, layer in enumerate(layers):
        place: Any = layer
        place.gradient_checkpointing = number < count
        place._gradient_checkpointing_func = compute_twice


def offload_layers(layers: Sequence[torch.nn.Module], offload: Offload) -> None:
    """Everything that ``layers`` keep for the backward pass goes to the memory of the CPU. Call once."""
    for layer in layers:
        place: Any = layer
        place.forward = _within(offload, place.forward)


def _checkpoint_function(offload: Offload | None) -> Callable[..., Any]:
    def compute_twice(function: Callable[..., Any], *inputs: Any) -> Any:
        # Non-reentrant: gradients flow although the inputs of a frozen model need none, and saved-tensor hooks see the inputs.
        return checkpoint(function, *inputs, use_reentrant=False)

    return compute_twice if offload is None else _within(offload, compute_twice)


def _within(offload: Offload, function: Callable[..., Any]) -> Callable[..., Any]:
    def inside(*arguments: Any, **named: Any) -> Any:
        with offload.hooks():
            return function(*arguments, **named)

    return inside
