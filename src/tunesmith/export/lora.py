"""What a LoRA adapter on disk does to a weight. Refuses every variant it would get wrong.

W' = W + s · B A (Hu et al., 2021, arXiv:2106.09685), s = α / r, or α / √r with rsLoRA (Kalajdzievski, 2023,
arXiv:2312.03732). DoRA (Liu et al., 2024, arXiv:2402.09353): every output row of W' is given its learned length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import ExportError
from tunesmith.export.changes import Blocks, Step, load
from tunesmith.export.numbers import FLOATS
from tunesmith.export.tensor_files import StoredTensor
from tunesmith.models.adapters.combine import by_pattern

if TYPE_CHECKING:
    import torch

# Keys of adapter_config.json that are understood here or change nothing once training is over. Any other key that is
# set (activated LoRA, block-diagonal LoRA, …, and whatever peft adds next) changes the arithmetic and is refused.
UNDERSTOOD = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config", "megatron_core", "modules_to_save", "peft_type",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules", "target_parameters",
    "task_type", "trainable_token_indices", "use_dora", "use_rslora",
}  # fmt: skip
REWRITES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starting values of A and B for which the base's own weights are changed as well."""


@dataclass(frozen=True)
class Delta:
    """``scale`` · B [out, r] · A [r, in] is added to a weight [out, in], or its transpose to one stored [in, out].

    ``magnitude`` [out]: with DoRA, the length that each output's weights then get.
    """

    a: StoredTensor
    b: StoredTensor
    scale: float
    transposed: bool
    magnitude: StoredTensor | None = None
    embedding: bool = False
    """The weight is an embedding: peft rounds the delta of these to the weight's type before it is added."""

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """See ``Change``."""
        mine = (self.b.shape[0], self.a.shape[1])
        mine = mine[::-1] if self.transposed else mine
        return str(list(mine)) if mine != shape else None

    def open(self, before: Blocks, dtype: torch.dtype) -> Step:
        """See ``Change``."""
        import torch

        a, b = load(self.a), load(self.b)

        def added(rows: torch.Tensor, start: int) -> torch.Tensor:
            end = start + len(rows)
            delta = (b @ a[:, start:end]).T if self.transposed else b[start:end] @ a
            delta.mul_(self.scale)
            return rows.add_(delta.to(dtype) if self.embedding else delta)

        if self.magnitude is None:
            return added
        lengths = load(self.magnitude)
        if self.transposed:  # an output is a column: its length takes a pass over all rows
            squares = torch.zeros(len(lengths))
            for start, rows in before():
                squares += added(rows, start).square().sum(dim=0)
            factors = lengths / squares.sqrt()
            return lambda rows, start: factors * added(rows, start)

        def scaled(rows: torch.Tensor, start: int) -> torch.Tensor:
            whole = added(rows, start)
            norm = torch.linalg.vector_norm(whole, dim=1)
            return (lengths[start : start + len(rows)] / norm)[:, None] * whole

        return scaled


def check_config(where: str, config: dict[str, Any]) -> None:
    """Raise ExportError for a setting of adapter_config.json that changes the arithmetic in a way not known here."""
    unknown = sorted(key for key, value in config.items() if key not in UNDERSTOOD and value)
    if unknown:
        raise ExportError(f"{where} uses {', '.join(unknown)}, which cannot be merged yet", hint=KNOWN)
    if config.get("bias", "none") != "none":
        raise ExportError(f"{where} trains biases (bias={config['bias']}), which cannot be merged yet", hint=KNOWN)
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(REWRITES_BASE):
        raise ExportError(
            f"{where} started from init_lora_weights={start}, which changes the base's weights as well",
            hint="save it as plain LoRA: model.save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )


KNOWN = (
    "LoRA (with rsLoRA, DoRA, rank and alpha patterns, modules_to_save, fused experts) and OFT can be merged; "
    "train with these"
)


def delta(where: str, config: dict[str, Any], module: str, parts: dict[str, StoredTensor], *, embedding: bool) -> Delta:
    """The change of one layer from its stored ``parts`` A, B and perhaps M (DoRA's magnitudes). Raises ExportError."""
    a, b = pair(where, module, parts)
    if a.shape[0] != b.shape[1]:
        raise ExportError(f"{where}: {module} has lora_A {list(a.shape)} and lora_B {list(b.shape)}", hint=KNOWN)
    magnitude = parts.get("M")
    if bool(config.get("use_dora")) != (magnitude is not None):
        raise ExportError(
            f"{where}: {module} {'has' if magnitude else 'lacks'} magnitudes, use_dora says otherwise", hint="not complete"
        )  # fmt: skip
    scale = scale_of(where, config, module, a.shape[0])
    return Delta(a, b, scale, embedding or bool(config.get("fan_in_fan_out")), magnitude, embedding)


def pair(where: str, module: str, parts: dict[str, StoredTensor]) -> tuple[StoredTensor, StoredTensor]:
    """A and B, both matrices of floats. Raises ExportError."""
    if not {"A", "B"} <= parts.keys():
        raise ExportError(f"{where}: {module} lacks its lora_A or lora_B", hint="the adapter is not complete")
    for part in parts.values():
        if part.dtype not in FLOATS or len(part.shape) > 2:
            raise ExportError(f"{where}: {module} is stored as {part.dtype} {list(part.shape)}", hint=KNOWN)
    return parts["A"], parts["B"]


def scale_of(where: str, config: dict[str, Any], module: str, rank: int) -> float:
    """s of a layer whose A has ``rank`` rows. Raises ExportError when the config says another rank."""
    alpha = by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    named = by_pattern(config.get("rank_pattern"), module, config.get("r", rank))
    if named != rank:
        raise ExportError(f"{where}: {module} has rank {rank} in its weights and {named} in its config")
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)
