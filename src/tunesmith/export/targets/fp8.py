"""``--to fp8``: float8 weights with a scale per output row, activations rounded per token while it runs; for vLLM (compressed-tensors)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.errors import ExportError
from tunesmith.config.progress import SILENT, Progress
from tunesmith.export.base import Report, check_target, size_of
from tunesmith.export.changes import loaded
from tunesmith.export.numbers import FLOATS
from tunesmith.export.packed_checkpoint import read_source, unchanged, write_checkpoint
from tunesmith.export.tensor_files import PlannedTensor, StoredTensor

if TYPE_CHECKING:
    import torch

    from tunesmith.export.layerwise import Layerwise

SOURCE, OUT = "merged", "folder"
MULTIPLE = 16
"""Widths that the matrix units of GPUs take in float8."""


class Config(BaseConfig):
    """float8 (e4m3) weights and activations, half the size of 16 bit and nearly exact; needs no calibration text."""


def usual_kl(config: Config) -> float:
    """Mean KL (nats) to the merged model that the result usually stays below."""
    return 0.05


def export(
    source: Path,
    out: Path,
    config: Config,
    progress: Progress = SILENT,
    *,
    told: Sequence[str] = (),
    prove: Callable[[Path], dict[str, Any]] | None = None,
) -> Report:
    """Write the full model folder ``source`` (16 or 32 bit) to the new folder ``out``, in compressed-tensors' ``FP8_DYNAMIC`` form.

    Linear layers of the blocks, and experts that are stored one by one, become ``weight`` float8 [out, in] and ``weight_scale`` [out, 1]; all
    else stays. One tensor is in memory at a time. ``told``: lines for the model card. ``prove`` is asked about the finished folder before
    it gets its name; one that fails is kept as ``out`` with ``.failed``. Raises ExportError; then ``out`` does not exist.
    """
    stored = read_source(source)
    import torch

    from tunesmith.export.layerwise import Layerwise

    model = Layerwise(source, stored, torch.device("meta"), with_experts=True)
    wanted = [
        model.weight_name(i, n) for i, names in enumerate(model.linears) for n in names if not _router(model, i, n)
    ]
    wanted += _of_experts(model)
    packed = {name for name in wanted if all(width % MULTIPLE == 0 for width in stored[name].shape)}
    if not packed:
        raise ExportError(
            f"no linear layer of {source} has widths that are multiples of {MULTIPLE}, as float8 kernels demand"
        )
    left = _left(model, packed)
    tensors = [
        new for name, tensor in stored.items() for new in (_float8(tensor) if name in packed else [unchanged(tensor)])
    ]
    check_target(out, sum(tensor.nbytes for tensor in tensors) + 2**22)
    facts = [
        *told,
        f"float8 (e4m3) weights with a scale per output row, activations float8 per token: {len(packed)} linear layers"
        + (", those of experts among them" if model.experts else ""),
    ]
    checks = write_checkpoint(source, out, tensors, _settings(left), facts, progress, prove)
    kept = [name for name in wanted if name not in packed]
    notes = (f"{len(kept)} layers stay in 16 bits: widths that are no multiples of {MULTIPLE}",) if kept else ()
    return Report(out, size_of(out), {"layers": len(packed), **checks}, notes)


def _of_experts(model: Layerwise) -> list[str]:
    """The stored weights of single experts. Raises ExportError where experts are not stored one by one, as loaders of this form want them."""
    found = []
    for name in model.experts:
        parts = model.parts.get(name, [])
        if not parts or any(expert is None for _, expert, _ in parts):
            raise ExportError(
                f"{model.folder} stores all experts of a layer in one tensor ({name}); float8 folders hold them one by one",
                hint="export it --to gguf instead",
            )
        found += [key for key, _, _ in parts]
    return found


def _router(model: Layerwise, block: int, linear: str) -> bool:
    """Whether a linear layer chooses the experts beside it: small, and what it chooses must not change."""
    beside = f"{model.name}.{block}.{linear}".rpartition(".")[0]
    counts = {model.model.get_parameter(n).shape[0] for n in model.experts if n.startswith(f"{beside}.")}
    return model.linear(block, linear).out_features in counts


def _left(model: Layerwise, packed: set[str]) -> list[str]:
    """Names of what multiplies by a matrix and is not packed (the output layer, routers): as transformers calls it, and as it is stored, which
    is what other loaders go by."""
    import torch

    left = []
    for name, module in model.model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.nn.Parameter) and weight.ndim == 2 and not isinstance(module, torch.nn.Embedding):
            stored = [part[0] for part in model.parts.get(f"{name}.weight", [])]
            if not packed.intersection(stored):
                left += [name, *(key.removesuffix(".weight") for key in stored)]
    left += [name.removesuffix(".weight") for name in _of_experts(model) if name not in packed]
    return list(dict.fromkeys(left))


def _settings(left: list[str]) -> dict[str, Any]:
    """``quantization_config`` as compressed-tensors defines its preset FP8_DYNAMIC; ``left``: linear layers that are not packed."""
    numbers = {"num_bits": 8, "type": "float", "symmetric": True, "group_size": None}
    weights = numbers | {"strategy": "channel", "dynamic": False}
    inputs = numbers | {"strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": left, "kv_cache_scheme": None, "global_compression_ratio": None,
    }  # fmt: skip


def _float8(tensor: StoredTensor) -> list[PlannedTensor]:
    if tensor.dtype not in FLOATS or tensor.dtype == "F64":
        raise ExportError(f"{tensor.file}: {tensor.name} is stored as {tensor.dtype}, not in 16 or 32 bit")
    scale = PlannedTensor(
        tensor.name + "_scale",
        tensor.served,
        (tensor.shape[0], 1),
        lambda: _bytes(rounded(loaded(tensor), tensor.name, tensor.served)[1]),
    )
    weight = PlannedTensor(
        tensor.name, "F8_E4M3", tensor.shape, lambda: _bytes(rounded(loaded(tensor), tensor.name, tensor.served)[0])
    )
    return [weight, scale]


def rounded(
    weight: torch.Tensor, name: str = "the weight", served: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """float8 of ``weight`` [out, in] and its scales [out, 1] in the type that it is served as (its own), in which loaders keep them.

    A row is divided by its scale as stored, so that the rounding of the scale costs nothing. Scales below the normal numbers of the type (rows
    of float16 below 0.027), where those that can be stored lie far apart, are rounded up: else the largest weights would not fit, or
    all would be 0. Raises ExportError for numbers that are not finite.
    """
    import torch

    largest = torch.finfo(torch.float8_e4m3fn).max
    dtype = getattr(torch, FLOATS[served]) if served is not None else weight.dtype
    rows, kind = weight.float(), torch.finfo(dtype)
    exact = rows.abs().amax(1, keepdim=True) / largest
    step = kind.smallest_normal * kind.eps
    scale = torch.where(exact < kind.smallest_normal, (exact / step).ceil() * step, exact).to(dtype)
    if not bool(scale.isfinite().all()):
        raise ExportError(
            f"{name} holds numbers that are not finite", hint="the model is damaged: does it answer in chat?"
        )
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (rows / scale.float()).clamp_(-largest, largest).to(torch.float8_e4m3fn), scale


def _bytes(tensor: torch.Tensor) -> Iterable[bytes]:
    import torch

    flat = tensor.contiguous().view(torch.uint8).flatten()
    return (part.numpy().tobytes() for part in flat.split(8 * 2**20))
