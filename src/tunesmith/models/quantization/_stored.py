"""Checkpoints stored as GPTQ, AWQ, fp8 or compressed-tensors: which layer is stored how, from config.json and the file headers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tunesmith.config.errors import UserError
from tunesmith.models.quantization._stored_linear import (
    AwqLinear,
    GptqLinear,
    PackedLinear,
    ScaledLinear,
    Stored,
    StoredLinear,
)

TYPES = {
    "I32": torch.int32, "I64": torch.int64, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
READ = "gptq, awq (gemm), fp8, compressed-tensors (pack-, int-, float- and naive-quantized) and bitsandbytes"


def maker(
    folder: Path, settings: dict[str, Any]
) -> tuple[Callable[..., StoredLinear | None], tuple[str, Callable[..., torch.Tensor]] | None]:
    """A function that builds the layer of that name as it is stored, or None for a layer stored plainly; and, for experts that are stored one by
    one with scales, what these are called and a function (stored, scales) -> weight. Raises UserError."""
    kind, how = _kind(folder, settings)
    layers: dict[str, Stored] = {}
    for name, stored in _headers(folder).items():
        layer, _, last = name.rpartition(".")
        layers.setdefault(layer, {})[last] = stored
    if not any(_packed(kind, stored) for stored in layers.values()):
        raise UserError(
            f"{folder}: config.json says it is stored quantized ({settings.get('quant_method')}), but no file holds a "
            f"tensor {kind.MAIN} with its scales"
        )

    def make(in_features: int, out_features: int, bias: bool, dtype: torch.dtype, name: str) -> StoredLinear | None:
        stored = layers.get(name)
        if stored is None or not _packed(kind, stored):
            return None
        return kind(in_features, out_features, bias, dtype, stored, how)

    return make, _experts(layers, kind, how)


def _experts(
    layers: dict[str, Stored], kind: type[StoredLinear], how: dict[str, Any]
) -> tuple[str, Callable[..., torch.Tensor]] | None:
    """transformers makes one tensor of all experts, which no layer of ours stands for: they are dequantized when they are read."""
    stored = [one for name, one in layers.items() if re.search(r"experts\.\d+\.", name) and _packed(kind, one)]
    if not stored or kind is not ScaledLinear:
        return None
    scale = next(name for name in stored[0] if "scale" in name)

    def weight(q: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        layer = ScaledLinear(q.shape[1], q.shape[0], False, torch.float32, {}, how)
        layer.register_buffer(scale, scales)
        return layer.scaled(q.float())

    return scale, weight


def _packed(kind: type[StoredLinear], stored: Stored) -> bool:
    return kind.MAIN in stored and any("scale" in name for name in stored)


def _kind(folder: Path, settings: dict[str, Any]) -> tuple[type[StoredLinear], dict[str, Any]]:
    method = settings.get("quant_method")
    if method == "gptq":
        bits = settings.get("bits")
        if bits not in (2, 3, 4, 8) or settings.get("pack_dtype", "int32") != "int32":
            raise _unreadable(folder, f"gptq of {bits} bits in {settings.get('pack_dtype', 'int32')}")
        keys = ("bits", "group_size", "checkpoint_format")
        return GptqLinear, {"group_size": -1, **{k: settings[k] for k in keys if settings.get(k) is not None}}
    if method == "awq":
        version, bits = str(settings.get("version", "gemm")).lower(), settings.get("bits", settings.get("w_bit"))
        if version != "gemm" or bits != 4:
            raise _unreadable(folder, f"awq {version} of {bits} bits")
        return AwqLinear, {"bits": 4}
    if method == "fp8":
        return ScaledLinear, {"block": settings.get("weight_block_size")}
    if method == "compressed-tensors":
        return _compressed(folder, settings)
    raise _unreadable(folder, str(method))


def _compressed(folder: Path, settings: dict[str, Any]) -> tuple[type[StoredLinear], dict[str, Any]]:
    groups = list(settings.get("config_groups", {}).values())
    form = settings.get("format") or (groups[0].get("format") if groups else None)
    weights = [group.get("weights") or {} for group in groups]
    known = {"pack-quantized": PackedLinear} | dict.fromkeys(
        ("int-quantized", "float-quantized", "naive-quantized"), ScaledLinear
    )
    first = weights[0] if weights else {}
    facts = [(w.get("num_bits"), w.get("group_size"), w.get("strategy"), w.get("block_structure")) for w in weights]
    if form not in known or len(set(map(str, facts))) != 1 or first.get("num_bits") not in (4, 8):
        what = f"compressed-tensors {form}, {len(groups)} groups of {sorted({str(w.get('num_bits')) for w in weights})} bits"
        raise _unreadable(folder, what)
    block = first.get("block_structure") if first.get("strategy") == "block" else None
    return known[form], {"bits": first["num_bits"], "group_size": first.get("group_size"), "block": block}


def _unreadable(folder: Path, what: str) -> UserError:
    return UserError(
        f"{folder} is stored quantized in a way that cannot be trained on here: {what}",
        hint=f"readable are {READ}; or name the 16-bit model and set model.quantize",
    )


def _headers(folder: Path) -> Stored:
    from safetensors import SafetensorError, safe_open

    found: Stored = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - no mapping
                    part = opened.get_slice(name)
                    found[name] = (TYPES.get(part.get_dtype(), torch.float32), tuple(part.get_shape()))
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{file} cannot be read: {error}",
                hint="the file is damaged or not whole; fetch the model again, or make it again",
            ) from error
    return found
