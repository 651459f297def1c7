"""A peft LoRA adapter on disk, and the merge of one weight. Refuses every variant it would get wrong.

W' = W + s · B A (Hu et al., 2021, https://arxiv.org/abs/2106.09685), s = α / r, or α / √r with rsLoRA
(Kalajdzievski, 2023, https://arxiv.org/abs/2312.03732).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import ExportError
from tunesmith.export.rows import Rows
from tunesmith.export.tensor_files import BUFFER, ITEM_BYTES, PlannedTensor, StoredTensor, read_header, read_json

if TYPE_CHECKING:
    import torch

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TRAINED_ROWS = ".token_adapter.trainable_tokens_delta"
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
# Keys of adapter_config.json that are understood here or change nothing once training is over. Any other key that is
# set (DoRA, activated LoRA, block-diagonal LoRA, …, and whatever peft adds next) changes the arithmetic and is refused.
UNDERSTOOD = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config", "megatron_core", "modules_to_save", "peft_type",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type",
    "trainable_token_indices", "use_rslora",
}  # fmt: skip
REWRITES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starting values of A and B for which the base's own weights are changed as well."""


@dataclass(frozen=True)
class Delta:
    """What the adapter adds to one weight [out, in]: ``scale`` · B [out, r] · A [r, in], or its transpose."""

    a: StoredTensor
    b: StoredTensor
    scale: float
    transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        shape = (self.b.shape[0], self.a.shape[1])
        return shape[::-1] if self.transposed else shape


@dataclass(frozen=True)
class Adapter:
    """``deltas``: weight name in the base -> what is added. ``replaced``: weight name -> the tensor trained in full."""

    folder: Path
    base: str | None
    deltas: dict[str, Delta]
    replaced: dict[str, StoredTensor]
    carried: dict[str, StoredTensor]
    """Copies of the base's own weights, which peft saves beside a LoRA on embeddings or the output layer."""
    ties: bool
    """Whether embeddings trained in full stay tied to the output layer."""
    rows: dict[str, Rows] = field(default_factory=dict)
    """Weight name in the base -> rows of it that were trained (new tokens)."""


def read_adapter(folder: Path) -> Adapter:
    """Read and check an adapter folder. Raises ExportError for what cannot be merged exactly."""
    config = read_json(folder / CONFIG)
    _refuse_unsupported(folder, config)
    if not (folder / WEIGHTS).exists():
        pickle = (folder / "adapter_model.bin").exists()
        raise ExportError(
            f"{folder / WEIGHTS} is missing"
            + (" (adapter_model.bin is pickle, which may run code when read)" if pickle else ""),
            hint="save the adapter as safetensors: model.save_pretrained(folder, safe_serialization=True)",
        )
    pairs: dict[str, dict[str, StoredTensor]] = {}
    replaced: dict[str, StoredTensor] = {}
    carried: dict[str, StoredTensor] = {}
    rows: dict[str, Rows] = {}
    for name, tensor in read_header(folder / WEIGHTS).items():
        plain = name.removeprefix("base_model.model.")
        match = re.fullmatch(r"(.+)\.lora_([AB])(?:\.default)?\.weight", plain)
        if match:
            pairs.setdefault(match[1], {})[match[2]] = tensor
        elif plain.endswith(TRAINED_ROWS):
            rows[plain.replace(TRAINED_ROWS, ".weight")] = _rows(
                folder, config, plain.removesuffix(TRAINED_ROWS), tensor
            )
        elif plain.endswith(".base_layer.weight"):
            carried[plain.replace(".base_layer", "")] = tensor
        elif "lora_" in plain or not name.startswith("base_model.model."):
            raise ExportError(f"{folder / WEIGHTS} holds {name}, which cannot be merged yet", hint=_PLAIN)
        else:
            replaced[plain.replace(".modules_to_save.default", "")] = tensor
    if not pairs and not replaced and not rows:
        raise ExportError(f"{folder / WEIGHTS} holds no adapter weights")
    deltas = {f"{module}.weight": _delta(folder, config, module, pair) for module, pair in pairs.items()}
    base = config.get("base_model_name_or_path") or None
    return Adapter(folder, base, deltas, replaced, carried, bool(config.get("ensure_weight_tying")), rows)


def _rows(folder: Path, config: dict[str, Any], module: str, tensor: StoredTensor) -> Rows:
    """peft keeps which rows were trained in its config: for all such layers alike, or by the layer's name."""
    which = config.get("trainable_token_indices")
    if isinstance(which, dict):
        which = next((ids for name, ids in which.items() if f".{module}".endswith(f".{name}")), None)
    if not isinstance(which, list) or len(which) != tensor.shape[0]:
        raise ExportError(
            f"{folder / CONFIG} does not say which rows of {module} were trained", hint="the adapter is not complete"
        )
    return Rows(tuple(int(i) for i in which), tensor)


_PLAIN = "only plain LoRA (with rsLoRA, rank and alpha patterns, modules_to_save) can be merged; train with these"


def _refuse_unsupported(folder: Path, config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ExportError(f"{folder} is an adapter of type {kind}; only LORA can be merged", hint=_PLAIN)
    unknown = sorted(key for key, value in config.items() if key not in UNDERSTOOD and value)
    if unknown:
        raise ExportError(f"{folder / CONFIG} uses {', '.join(unknown)}, which cannot be merged yet", hint=_PLAIN)
    if config.get("bias", "none") != "none":
        raise ExportError(
            f"{folder / CONFIG} trains biases (bias={config['bias']}), which cannot be merged yet", hint=_PLAIN
        )
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(REWRITES_BASE):
        raise ExportError(
            f"{folder / CONFIG} started from init_lora_weights={start}, which changes the base's weights as well",
            hint="save it as plain LoRA: model.save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )


def _delta(folder: Path, config: dict[str, Any], module: str, pair: dict[str, StoredTensor]) -> Delta:
    if set(pair) != {"A", "B"}:
        raise ExportError(
            f"{folder / WEIGHTS}: {module} has only its lora_{next(iter(pair))}", hint="the adapter is not complete"
        )
    a, b = pair["A"], pair["B"]
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise ExportError(
            f"{folder / WEIGHTS}: {module} has lora_A {list(a.shape)} and lora_B {list(b.shape)}", hint=_PLAIN
        )
    if a.dtype not in FLOATS or b.dtype not in FLOATS:
        raise ExportError(f"{folder / WEIGHTS}: {module} is stored as {a.dtype}, not as floats", hint=_PLAIN)
    rank = a.shape[0]
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    named = _by_pattern(config.get("rank_pattern"), module, config.get("r", rank))
    if named != rank:
        raise ExportError(f"{folder}: {module} has rank {rank} in its weights and {named} in {CONFIG}")
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Delta(a, b, scale, bool(config.get("fan_in_fan_out")))


def _by_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """peft's rule: the first pattern that is the module's name or its end after a dot, as a regular expression."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def merged(weight: StoredTensor, delta: Delta, name: str) -> PlannedTensor:
    """``weight`` with ``delta`` added, as a tensor to write under ``name``. Raises ExportError when they do not fit.

    Computed in float32 in blocks of rows and rounded once to the weight's own type. This is what peft's ``merge_and_unload``
    computes for float32 adapters (its ``safe_merge`` rounds the delta to the weight's type first, so it may differ there in the last bit).
    """
    if weight.dtype not in FLOATS:
        raise ExportError(
            f"{weight.file}: {weight.name} is stored as {weight.dtype}; a quantized base cannot take the adapter exactly",
            hint="give the base in its original precision (16 or 32 bit)",
        )
    if weight.shape != delta.shape:
        raise ExportError(
            f"{weight.name} is {list(weight.shape)} in the base, the adapter was trained for {list(delta.shape)}",
            hint="adapter and base do not belong together; see base_model_name_or_path in the adapter's adapter_config.json",
        )
    return PlannedTensor(name, weight.dtype, weight.shape, lambda: _merge_blocks(weight, delta))


def _merge_blocks(weight: StoredTensor, delta: Delta) -> Iterator[bytes]:
    import torch

    a, b = loaded(delta.a).float(), loaded(delta.b).float()
    rows, columns = weight.shape
    row_bytes = columns * ITEM_BYTES[weight.dtype]
    block = max(1, BUFFER // (columns * 4))
    dtype = getattr(torch, FLOATS[weight.dtype])
    for start in range(0, rows, block):
        end = min(rows, start + block)
        raw = bytearray().join(weight.read(start * row_bytes, end * row_bytes))
        part = torch.frombuffer(raw, dtype=dtype).reshape(end - start, columns)
        added = (b @ a[:, start:end]).T if delta.transposed else b[start:end] @ a
        whole = part.to(torch.promote_types(dtype, torch.float32)) + added * delta.scale
        yield whole.to(dtype).contiguous().view(torch.uint8).numpy().tobytes()


def loaded(tensor: StoredTensor) -> torch.Tensor:
    """The whole tensor in its own type."""
    import torch

    dtype = getattr(torch, FLOATS[tensor.dtype])
    return torch.frombuffer(bytearray().join(tensor.chunks()), dtype=dtype).reshape(tensor.shape)


def converted(tensor: StoredTensor, dtype: str) -> Iterator[bytes]:
    """The bytes of ``tensor`` rounded to the stored type ``dtype`` (``BF16`` …), a chunk at a time."""
    import torch

    stored, wanted = getattr(torch, FLOATS[tensor.dtype]), getattr(torch, FLOATS[dtype])
    for chunk in tensor.chunks(BUFFER):
        part = torch.frombuffer(bytearray(chunk), dtype=stored).to(wanted)
        yield part.view(torch.uint8).numpy().tobytes()
