"""Which of a model's tensors are matrices of its linear layers, told by name and shape.

Embeddings and the output layer are matrices too, but their rows are tokens, and a step touches few of them: the papers leave
them to plain Adam.
"""

from __future__ import annotations

import re

import torch

WRAPPERS = {"base_layer", "modules_to_save", "original_module", "default"}
"""Parts of a name that peft puts between a layer and its weight."""
VOCABULARY = re.compile(r"(?!.*norm)\w*embed\w*|wte|wpe|lm_head|shared|output|head")
"""What transformers' models call their embeddings and their output layer."""


def owner(name: str) -> str:
    """The layer that the parameter belongs to: ``model.layers.0.mlp.up_proj.weight`` -> ``up_proj``."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    return parts[-2] if len(parts) > 1 else ""


def of_vocabulary(name: str) -> bool:
    """Whether the parameter is an embedding or the output layer."""
    return VOCABULARY.fullmatch(owner(name)) is not None


def is_matrix(name: str, tensor: torch.Tensor) -> bool:
    """Whether the parameter is a matrix of a linear layer, or a stack of them (experts: the last two dimensions count)."""
    return tensor.ndim >= 2 and not of_vocabulary(name)


def projected(name: str, tensor: torch.Tensor, rank: int) -> bool:
    """Whether a projection to ``rank`` makes the parameter's gradient smaller."""
    return is_matrix(name, tensor) and rank < min(tensor.shape[-2:])
