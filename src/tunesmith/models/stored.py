"""Named tensors in a checkpoint folder: written in shards, read back strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import UserError

if TYPE_CHECKING:
    import torch

SHARD = "2GB"
"""Largest weight file of a checkpoint: what is copied to main memory at once when it is written."""


def write_tensors(folder: Path, tensors: Mapping[str, torch.Tensor], stem: str = "model") -> None:
    """``tensors`` as ``<stem>.safetensors``, or as shards with transformers' index. No two may share memory."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    split = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern=f"{stem}{{suffix}}.safetensors", max_shard_size=SHARD
    )
    for file, names in split.filename_to_tensors.items():
        part = {name: tensors[name].detach().contiguous() for name in names}
        save_file(part, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def read_tensors(folder: Path, stem: str = "model") -> dict[str, torch.Tensor]:
    """What ``write_tensors`` wrote. Raises UserError when a file is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / f"{stem}.safetensors.index.json"
    try:
        files = [f"{stem}.safetensors"]
        if index.is_file():
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return {name: tensor for file in files for name, tensor in load_file(folder / file).items()}
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{folder}: its weights cannot be read: {error}", hint="the checkpoint is damaged; take another"
        ) from error


def state_of(folder: Path, stored: Mapping[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """The tensors of the learned parameters of ``model``, by name. Raises UserError for one that is missing or of another shape."""
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    absent = sorted(wanted.keys() - stored.keys())
    if absent:
        raise UserError(
            f"{folder} holds no {absent[0]}" + (f" and {len(absent) - 1} more that are learned" if absent[1:] else ""),
            hint="the checkpoint belongs to another model or other settings of the method",
        )
    check_shapes(folder, stored, {name: tuple(p.shape) for name, p in wanted.items()})
    return {name: stored[name] for name in wanted}


def check_shapes(folder: Path, stored: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise UserError for the first tensor that has not the shape the model wants."""
    for name, shape in shapes.items():
        if name in stored and tuple(stored[name].shape) != shape:
            raise UserError(
                f"{folder}: {name} is {list(stored[name].shape)}, the model has {list(shape)}",
                hint="the checkpoint belongs to another model or other settings of the method",
            )
