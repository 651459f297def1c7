"""AWQ over the blocks of a model: scale, round, pack, and pass on what the packed weights make of the text.

Lin et al., 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (arXiv:2306.00978). Weights that large
inputs meet matter most. Multiplied by s > 1 before they are rounded, with their inputs divided by s, their error shrinks by s, as
long as the group's largest weight stays about the same (section 3.2). The scales are (eq. 4 and 5 of the paper)

    s = s_x^a,    a = argmin ‖ Q(W diag(s)) diag(s)⁻¹ X − W X ‖,    0 <= a <= 1

with s_x the mean of |x| for each input channel. Here the error is that of the whole block's output on a part of the text, so that a
layer counts by what it changes in the end. The factors are put into the weights of what puts out x (``awq_pairs``), so the packed model has
no operation more. The search looks at one group of layers at a time, in fp32 and with plain ranges; so the finished block is measured once more as
it is stored, beside one without any scales, and the better of the two is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from tunesmith.config.errors import ExportError
from tunesmith.config.progress import Progress
from tunesmith.export.awq_pairs import Before, find, multiply
from tunesmith.export.block_files import BlockFiles
from tunesmith.export.by_block import Done, Tensors, packable, through_blocks
from tunesmith.export.gptq_solver import Grid, Rounded, to_nearest
from tunesmith.export.layerwise import Layerwise
from tunesmith.export.numbers import FLOATS
from tunesmith.models.quantization._stored_linear import awq_weight, awq_words

TRIED = 10
"""Steps of the exponent from 0 to 1."""
SEARCH_TOKENS = 1024
"""Text on which the error of a block is measured while scales are searched; means of inputs are taken over all of it."""
PAIR_TOKENS = 128
"""Text on which it is tried what scales may go into: one row of about so many tokens. A row of one token does not tell, since q and k change nothing there."""
PARTS = ("qweight", "qzeros", "scales")


def packed(rounded: Rounded) -> Tensors:
    """The tensors of a layer as AutoAWQ's ``gemm`` form has them, see ``AwqLinear``."""
    return {
        "qweight": awq_words(rounded.codes.t().int()),
        "qzeros": awq_words(rounded.zeros),
        "scales": rounded.scales,
    }


def quantize(
    model: Layerwise, rows: Sequence[Sequence[int]], grid: Grid, files: BlockFiles, progress: Progress
) -> Done:
    """Quantize every block, see ``through_blocks``; errors are squared errors of the blocks' outputs, as a part of what the block changes in them."""
    return through_blocks(
        model, rows, files, progress, "awq",
        lambda i, hidden: _block(model, i, hidden, grid, progress),
        lambda i, tensors: _restore(model, i, tensors),
    )  # fmt: skip


def _block(
    model: Layerwise, i: int, hidden: Sequence[torch.Tensor], grid: Grid, progress: Progress
) -> tuple[Tensors, dict[str, Any]]:
    """Packed and changed tensors of block ``i`` by stored name, and its figures. The block is left with the weights they stand for."""
    sample = _Sample(model, i, hidden)
    groups = model.groups(i, hidden[0])
    exact = _parameters(model, i)
    powers: dict[str, float] = {}
    changed: list[str] = []
    squares: list[torch.Tensor] = []
    costs: list[torch.Tensor] = []
    for names in groups:
        mean, square = _inputs(model, i, names[0], hidden)
        rounded = [name for name in names if packable(model, i, name)]
        before = find(model, i, names, sample.telling) if rounded and sample.telling is not None else None
        power, by = _search(model, i, rounded, before, mean, grid, sample) if before is not None else (0.0, None)
        if by is not None and before is not None:
            factors = by[before.channel]
            changed += before.divide(model.blocks[i], by)
            multiply(model, i, names, factors)
            changed += [f"{name}.weight" for name in names]
        powers[names[0]] = power
        squares.append(square)
        costs.append(square if by is None or before is None else square / by[before.channel].square())
        progress.advance(len(names), f"{model.weight_name(i, names[0])}: exponent {power:.1f}")
    tensors, kept = _packed(model, i, groups, costs, changed, grid)
    error = sample.error()
    if changed:
        scaled = _parameters(model, i)
        _fill(model, i, exact)
        plain, _ = _packed(model, i, groups, squares, (), grid)
        without = sample.error()
        if without < error:
            tensors, error, powers = plain, without, dict.fromkeys(powers, 0.0)
            progress.say(f"{model.name}.{i}: rounded without scales, which come out worse")
        else:
            _fill(model, i, scaled)
    progress.advance(len(model.linears[i]) - sum(map(len, groups)))
    return tensors, {"errors": {f"{model.name}.{i}": error}, "kept": kept, "exponents": powers}


def _packed(
    model: Layerwise, i: int, groups: Sequence[Sequence[str]], costs: Sequence[torch.Tensor], changed: Sequence[str], grid: Grid
) -> tuple[Tensors, list[str]]:  # fmt: skip
    """The block's tensors by stored name, packed from the weights it has now, and the layers that stay; it gets the weights they stand for."""
    tensors = _kept_parameters(model, i, changed)
    kept = [model.weight_name(i, n).removesuffix(".weight") for n in model.linears[i]]
    for names, cost in zip(groups, costs, strict=True):
        for name in names:
            if packable(model, i, name):
                stored = model.weight_name(i, name).removesuffix(".weight")
                layer = packed(to_nearest(model.linear(i, name).weight, grid, cost))
                _use(model, i, name, layer)
                tensors |= {f"{stored}.{key}": tensor for key, tensor in layer.items()}
                kept.remove(stored)
    return tensors, kept


def _parameters(model: Layerwise, i: int) -> Tensors:
    """What the block's parameters hold now; nothing here changes them in place."""
    return {name: parameter.data for name, parameter in model.blocks[i].named_parameters()}


def _fill(model: Layerwise, i: int, values: Tensors) -> None:
    for name, parameter in model.blocks[i].named_parameters():
        parameter.data = values[name]


class _Sample:
    """A part of the text with what the untouched block ``i`` makes of it."""

    def __init__(self, model: Layerwise, i: int, hidden: Sequence[torch.Tensor]) -> None:
        self.model, self.i = model, i
        several = [h for h in hidden if h.shape[1] > 1]
        self.telling = min(several, key=lambda h: abs(h.shape[1] - PAIR_TOKENS), default=None)
        self.rows: list[torch.Tensor] = []
        for h in hidden:
            if sum(len(row[0]) for row in self.rows) < SEARCH_TOKENS:
                self.rows.append(h)
        self.exact = [model.forward(i, h) for h in self.rows]
        self.whole = sum(float((out - h).square().sum()) for out, h in zip(self.exact, self.rows, strict=True))
        if not self.whole < float("inf"):
            raise ExportError(
                f"what {model.name}.{i} puts out is not finite on the calibration text",
                hint="the model is damaged: does it answer in chat?",
            )

    def error(self) -> float:
        """Squared error of the block's output with the weights it has now, as a part of what the untouched block adds to its input."""
        off = sum(
            float((self.model.forward(self.i, h) - out).square().sum())
            for h, out in zip(self.rows, self.exact, strict=True)
        )
        return off / self.whole if self.whole > 0 else 0.0


def _inputs(model: Layerwise, i: int, layer: str, hidden: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of |x| and of x² for each input channel of a layer."""
    mean = torch.zeros(model.linear(i, layer).in_features, device=model.device)
    square, count = torch.zeros_like(mean), 0
    for x in model.inputs(i, layer, hidden):
        mean += x.abs().sum(0)
        square += x.square().sum(0)
        count += len(x)
    return mean / max(1, count), square / max(1, count)


def _search(
    model: Layerwise, i: int, names: Sequence[str], before: Before, mean: torch.Tensor, grid: Grid, sample: _Sample
) -> tuple[float, torch.Tensor | None]:  # fmt: skip
    """The exponent with the smallest error of the block, and its scales by output of ``before``; (0, None): none is better than no scale.

    Ranges are not searched here, which would take more time than all the rest; they are when the layer is packed.
    """
    plain = replace(grid, search=False)
    strength = torch.zeros(before.count, device=mean.device).index_add_(0, before.channel, mean)
    strength = strength.clamp(min=float(strength.mean()) * 1e-4)
    modules = [model.linear(i, name) for name in names]
    weights = [module.weight.data for module in modules]
    best, power, scales = float("inf"), 0.0, None
    for step in range(TRIED + 1):
        by = strength.pow(step / TRIED)
        by = by / (by.max() * by.min()).sqrt()
        factors = by[before.channel]
        for module, weight in zip(modules, weights, strict=True):
            module.weight.data = to_nearest(weight * factors, plain).weight() / factors
        error = sample.error()
        if error < best:
            best, power, scales = error, step / TRIED, by if step else None
    for module, weight in zip(modules, weights, strict=True):
        module.weight.data = weight
    return power, scales


def _kept_parameters(model: Layerwise, i: int, changed: Sequence[str]) -> Tensors:
    """Parameters of the block that scales have changed and that are stored unpacked, by stored name, in their type; the block gets what is stored."""
    tensors = {}
    for name in dict.fromkeys(changed):
        layer, _, last = name.rpartition(".")
        if last == "weight" and layer in model.linears[i] and packable(model, i, layer):
            continue
        stored = model.tensor_name(i, name)
        parameter = model.blocks[i].get_parameter(name)
        tensors[stored] = parameter.data.to(getattr(torch, FLOATS[model.stored[stored].served]))
        parameter.data = tensors[stored].float()
    return tensors


def _restore(model: Layerwise, i: int, tensors: Tensors) -> None:
    for name in model.linears[i]:
        stored = model.weight_name(i, name).removesuffix(".weight")
        if f"{stored}.qweight" in tensors:
            _use(model, i, name, {part: tensors[f"{stored}.{part}"] for part in PARTS})
    start = f"{model.name}.{i}."
    own = dict(model.blocks[i].named_parameters())
    for stored, tensor in tensors.items():
        parameter = own.get(stored.removeprefix(start))
        if parameter is not None:
            parameter.data = tensor.to(model.device).float()


def _use(model: Layerwise, i: int, name: str, layer: Tensors) -> None:
    weight = awq_weight(*(layer[part].to(model.device) for part in PARTS))
    model.linear(i, name).weight.data = weight.contiguous()
