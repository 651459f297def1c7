"""Adapters on disk as changes of the base's weights: one, or one learned on top of others that are merged first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError
from tunesmith.export import lora, oft
from tunesmith.export.changes import Change
from tunesmith.export.experts import empty_model, expert_deltas, stored_parts
from tunesmith.export.rows import Rows
from tunesmith.export.tensor_files import StoredTensor, read_header, read_json, same_bytes
from tunesmith.models.adapters.chain import merged_first

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TRAINED_ROWS = ".token_adapter.trainable_tokens_delta"


@dataclass(frozen=True)
class Adapter:
    """``changes``: weight name in the base -> what is done to it, in order. ``replaced``: weight name -> the tensor that
    was trained in full and takes its place before that."""

    folder: Path
    base: str | None
    changes: dict[str, tuple[Change, ...]]
    replaced: dict[str, StoredTensor]
    carried: dict[str, StoredTensor]
    """Copies of the base's own weights, which peft saves beside a LoRA on embeddings or the output layer."""
    ties: bool
    """Whether embeddings trained in full stay tied to the output layer."""
    config: dict[str, Any] = field(default_factory=dict)
    experts: dict[str, dict[int, dict[str, StoredTensor]]] = field(default_factory=dict)
    """Module of fused experts -> depth of the wrapper -> A and B; ``located`` makes changes of them."""
    rows: dict[str, Rows] = field(default_factory=dict)
    """Weight name in the base -> rows of it that were trained (new tokens)."""


def read_adapters(folder: Path) -> list[Adapter]:
    """The adapter in ``folder`` behind those that it needs merged first. Raises ExportError, UserError."""
    return [read_adapter(one) for one in (*merged_first(folder), folder)]


def read_adapter(folder: Path) -> Adapter:
    """Read and check one adapter folder. Raises ExportError for what cannot be merged exactly."""
    config = read_json(folder / CONFIG)
    kind, where = config.get("peft_type"), str(folder / CONFIG)
    if kind == "OFT":
        unknown = sorted(key for key, value in config.items() if key not in oft.UNDERSTOOD and value)
        if unknown or config.get("bias", "none") != "none":
            raise ExportError(
                f"{where} uses {', '.join(unknown) or 'bias'}, which cannot be merged yet", hint=lora.KNOWN
            )
    elif kind == "LORA":
        lora.check_config(where, config)
    else:
        raise ExportError(f"{folder} is an adapter of type {kind}; only LORA and OFT can be merged", hint=lora.KNOWN)
    if not (folder / WEIGHTS).exists():
        pickle = (folder / "adapter_model.bin").exists()
        raise ExportError(
            f"{folder / WEIGHTS} is missing"
            + (" (adapter_model.bin is pickle, which may run code when read)" if pickle else ""),
            hint="where you trust it, open it with peft and save it anew, as safetensors: "
            "PeftModel.from_pretrained(base, folder).save_pretrained(folder)"
            if pickle
            else "this adapter is incomplete: take another checkpoint, or fetch it again",
        )
    sorted_out = _sort_out(folder, config, read_header(folder / WEIGHTS))
    if not (sorted_out.changes or sorted_out.replaced or sorted_out.experts or sorted_out.rows):
        raise ExportError(f"{folder / WEIGHTS} holds no adapter weights")
    return sorted_out


def _sort_out(folder: Path, config: dict[str, Any], tensors: dict[str, StoredTensor]) -> Adapter:
    where = str(folder / WEIGHTS)
    layers: dict[tuple[str, bool], dict[str, StoredTensor]] = {}
    experts: dict[str, dict[int, dict[str, StoredTensor]]] = {}
    changes: dict[str, tuple[Change, ...]] = {}
    replaced: dict[str, StoredTensor] = {}
    carried: dict[str, StoredTensor] = {}
    row_tensors: dict[str, StoredTensor] = {}
    holders = tuple(one.rpartition(".")[0] for one in config.get("target_parameters") or ())
    for name, tensor in tensors.items():
        plain = name.removeprefix("base_model.model.")
        match = re.fullmatch(r"(.+)\.lora_(embedding_)?([AB]|magnitude_vector)(?:\.default)?(?:\.weight)?", plain)
        turned = re.fullmatch(r"(.+)\.oft_R(?:\.default)?\.weight", plain)
        if match:
            part = "M" if match[3] == "magnitude_vector" else match[3]
            module = match[1].replace(".base_layer", "")
            if any(module == one or module.endswith(f".{one}") for one in holders):
                experts.setdefault(module, {}).setdefault(match[1].count(".base_layer"), {})[part] = tensor
            else:
                layers.setdefault((match[1], False), {})[part] = tensor
                if match[2]:
                    layers[match[1], True] = layers[match[1], False]
        elif turned:
            changes[f"{turned[1]}.weight"] = (oft.rotation(tensor, config),)
        elif plain.endswith(TRAINED_ROWS):
            row_tensors[plain.removesuffix(TRAINED_ROWS)] = tensor
        elif plain.endswith(".base_layer.weight"):
            carried[plain.replace(".base_layer", "")] = tensor
        elif "lora_" in plain or "oft_" in plain or not name.startswith("base_model.model."):
            raise ExportError(f"{where} holds {name}, which cannot be merged yet", hint=lora.KNOWN)
        else:
            replaced[plain.replace(".modules_to_save.default", "")] = tensor
    for (module, embedding), parts in layers.items():
        if embedding or (module, True) not in layers:
            changes[f"{module}.weight"] = (lora.delta(where, config, module, parts, embedding=embedding),)
    rows = _trained_rows(folder, config, row_tensors)
    base = config.get("base_model_name_or_path") or None
    return Adapter(
        folder, base, changes, replaced, carried, bool(config.get("ensure_weight_tying")), config, experts, rows
    )


def _trained_rows(folder: Path, config: dict[str, Any], tensors: dict[str, StoredTensor]) -> dict[str, Rows]:
    """Rows that were trained alone, by weight name. ``tensors``: module -> what its rows became.

    peft keeps which rows in its config: for all layers alike, or by the layer's name. A layer that is tied to another one is not
    named there; its tensor is a copy of the other's, and not told again.
    """
    found: dict[str, Rows] = {}
    which = config.get("trainable_token_indices")
    for module, tensor in tensors.items():
        ids = which
        if isinstance(which, dict):
            ids = next((ids for name, ids in which.items() if f".{module}".endswith(f".{name}")), None)
            others = [other for name, other in tensors.items() if name != module]
            if ids is None and any(same_bytes(tensor, other) for other in others):
                continue
        if not isinstance(ids, list) or len(ids) != tensor.shape[0]:
            raise ExportError(
                f"{folder / CONFIG} does not say which rows of {module} were trained",
                hint="the adapter is not complete",
            )
        found[f"{module}.weight"] = Rows(tuple(int(i) for i in ids), tensor)
    return found


def combined(adapters: Sequence[Adapter], base: Path, stored: dict[str, StoredTensor]) -> Adapter:
    """``adapters`` merged one after the other into ``base``, as one. Raises ExportError.

    Names are those that the base's files use, where these are not the model's own.
    """
    found: Adapter | None = None
    for one in adapters:
        one = _located(one, base, stored)
        if found is None:
            found = one
            continue
        changes = {name: these for name, these in found.changes.items() if name not in one.replaced}
        for name, these in one.changes.items():
            changes[name] = (*changes.get(name, ()), *these)
        replaced = found.replaced | one.replaced
        found = replace(
            one,
            changes=changes,
            replaced=replaced,
            carried=found.carried | one.carried,
            ties=found.ties or one.ties,
            rows=found.rows | one.rows,
        )
    assert found is not None
    return found


def _located(adapter: Adapter, base: Path, stored: dict[str, StoredTensor]) -> Adapter:
    changes = dict(adapter.changes)
    strange = [name for name in [*changes, *adapter.replaced, *adapter.rows] if name not in stored]
    if strange and any(name not in TIED_OUTPUT for name in strange):
        changes = _renamed(changes, base, stored)
        adapter = replace(
            adapter, replaced=_renamed(adapter.replaced, base, stored), rows=_renamed(adapter.rows, base, stored)
        )
    if adapter.experts:
        where = str(adapter.folder / WEIGHTS)
        deltas = expert_deltas(where, adapter.config, adapter.experts, base, stored)
        changes |= {name: (delta,) for name, delta in deltas.items()}
    return replace(adapter, changes=changes, experts={})


TIED_OUTPUT = ("lm_head.weight",)
"""Often not stored: it is the embedding's weight."""


def _renamed(values: dict[str, Any], base: Path, stored: dict[str, StoredTensor]) -> dict[str, Any]:
    places = stored_parts(empty_model(base), stored)
    found = {}
    for name, value in values.items():
        parts = places.get(name, [])
        found[parts[0][0] if len(parts) == 1 and parts[0][1] is None else name] = value
    return found
