"""GPTQ over the blocks of a model: calibrate, round, pack, and pass on what the packed weights make of the text.

Within a block the layers follow each other as the data does (the paper's "true sequential"): what gets the same input (q, k and v;
gate and up) is one problem and is solved as one, so those layers also share their order of inputs, as loaders that fuse them
demand. A weight is what the reader of the file makes of the packed tensors, also on the way through the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.config.errors import ExportError
from tunesmith.config.progress import Progress
from tunesmith.export.block_files import BlockFiles
from tunesmith.export.by_block import Done, packable, through_blocks
from tunesmith.export.gptq_solver import Grid, Rounded, output_error, solve
from tunesmith.export.layerwise import Layerwise
from tunesmith.models.quantization._stored_linear import gptq_weight, pack_words

PARTS = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True)
class Gptq:
    """How a block is quantized; see ``gptq_solver`` for ``grid``, ``order`` and ``damp``."""

    grid: Grid
    order: str
    damp: float


def packed(rounded: Rounded, bits: int) -> dict[str, torch.Tensor]:
    """The tensors of a layer in the first GPTQ format (zeros stored as zero - 1), see ``GptqLinear``."""
    return {
        "qweight": pack_words(rounded.codes, bits).t().contiguous(),
        "qzeros": pack_words(rounded.zeros - 1, bits),
        "scales": rounded.scales,
        "g_idx": rounded.g_idx.clone(),  # shared by layers with the same input; a file holds no shared tensors
    }


def quantize(model: Layerwise, rows: Sequence[Sequence[int]], how: Gptq, files: BlockFiles, progress: Progress) -> Done:
    """Quantize every block, see ``through_blocks``; errors are relative squared errors of the layers' outputs."""
    return through_blocks(
        model, rows, files, progress, "gptq",
        lambda i, hidden: _block(model, i, hidden, how, progress),
        lambda i, tensors: _restore(model, i, tensors, how.grid.bits),
    )  # fmt: skip


def _block(
    model: Layerwise, i: int, hidden: Sequence[torch.Tensor], how: Gptq, progress: Progress
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Packed tensors of block ``i`` by stored name, and its figures. The block is left with the weights they stand for."""
    tensors: dict[str, torch.Tensor] = {}
    errors: dict[str, float] = {}
    groups = [[n for n in names if packable(model, i, n)] for names in model.groups(i, hidden[0])]
    for names in filter(None, groups):
        hessian = model.hessian(i, names[0], hidden)
        if not bool(hessian.isfinite().all()):
            raise ExportError(
                f"the inputs of {model.weight_name(i, names[0])} are not finite on the calibration text",
                hint="the model is damaged: does it answer in chat?",
            )
        modules = [model.linear(i, n) for n in names]
        weight = torch.cat([m.weight for m in modules])
        rounded = solve(weight, hessian, how.grid, order=how.order, damp=how.damp)
        start = 0
        for name, module in zip(names, modules, strict=True):
            end = start + module.out_features
            part = Rounded(
                rounded.codes[start:end], rounded.scales[:, start:end], rounded.zeros[:, start:end], rounded.g_idx
            )
            stored = model.weight_name(i, name).removesuffix(".weight")
            one = packed(part, how.grid.bits)
            before = module.weight
            _use(module, one, how.grid.bits)
            errors[stored] = output_error(before, module.weight, hessian)
            tensors |= {f"{stored}.{key}": tensor for key, tensor in one.items()}
            start = end
            progress.advance(1, f"{stored}: error {errors[stored]:.2%}")
    kept = [model.weight_name(i, n).removesuffix(".weight") for n in model.linears[i]]
    kept = [name for name in kept if name not in errors]
    progress.advance(len(kept))
    return tensors, {"errors": errors, "kept": kept}


def _restore(model: Layerwise, i: int, tensors: dict[str, torch.Tensor], bits: int) -> None:
    for name in model.linears[i]:
        stored = model.weight_name(i, name).removesuffix(".weight")
        if f"{stored}.qweight" in tensors:
            _use(model.linear(i, name), {k: tensors[f"{stored}.{k}"] for k in PARTS}, bits)


def _use(module: torch.nn.Linear, parts: dict[str, torch.Tensor], bits: int) -> None:
    on_device = {name: tensor.to(module.weight.device) for name, tensor in parts.items()}
    weight = gptq_weight(bits, *(on_device[name] for name in PARTS))
    module.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=False)
