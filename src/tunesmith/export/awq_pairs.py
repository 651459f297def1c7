"""Where the inputs of linear layers come from, channel by channel: found by trying on text, not by a family's names.

When what puts out channel k is divided by s_k and the columns of the layers that read it are multiplied by s_k, the model computes the same.
That works for a norm with a weight per channel before q, k, v or gate, up; for the values before the output projection of attention, which
mixes tokens but never channels (with grouped queries, one value feeds several inputs); for "up" before "down", because it only multiplies;
and for nothing else in general. Whether it works, and which input comes from which output, is measured: the outputs get random
factors, and each input must follow one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from tunesmith.export.layerwise import Layerwise

CLOSE = 1e-3
"""Relative difference, in fp32, up to which two results are one. A wrong pair is off by its factors: 0.5 to 2."""


@dataclass(frozen=True)
class Before:
    """Input j of the layers is ``channel[j]`` (int64 [in]) of the ``count`` outputs of ``module`` (its name in the block) from row ``first`` on.

    ``shift``: a norm multiplies by ``shift`` + weight, which is 1 in Gemma.
    """

    module: str
    count: int
    first: int
    shift: float
    channel: torch.Tensor

    def divide(self, block: nn.Module, by: torch.Tensor) -> list[str]:
        """Divide the outputs by ``by`` [count]. Returns the names of the parameters that were changed."""
        module, changed = block.get_submodule(self.module), []
        rows = slice(self.first, self.first + self.count)
        for name, parameter in module.named_parameters(recurse=False):
            shift = self.shift if name == "weight" else 0.0
            factor = by if parameter.ndim == 1 else by[:, None]
            values = parameter.data.clone()
            values[rows] = (values[rows] + shift) / factor - shift
            parameter.data = values
            changed.append(f"{self.module}.{name}")
        return changed


def find(model: Layerwise, i: int, names: Sequence[str], hidden: torch.Tensor) -> Before | None:
    """What the input of the linear layers ``names`` of the filled block ``i``, which is one and the same, comes from; None: nothing that can take factors.

    ``hidden``: the states of one row before the block. A source that something else reads too is none: with factors in it and in the
    columns of ``names``, the block must put out what it did.
    """
    block, layer = model.blocks[i], names[0]
    x, out = next(model.inputs(i, layer, [hidden])), model.forward(i, hidden)
    for one in _candidates(model, i, layer, hidden):
        factors, numbers = _factors(one.count, 0, x.device)
        with _kept(block, [one.module]):
            one.divide(block, factors)
            channel = _channels(x, next(model.inputs(i, layer, [hidden])), numbers, one)
        if channel is None:
            continue
        found = Before(one.module, one.count, one.first, one.shift, channel)
        factors = _factors(one.count, 1, x.device)[0]
        with _kept(block, [one.module, *names]):
            found.divide(block, factors)
            multiply(model, i, names, factors[channel])
            again = model.forward(i, hidden)
        if bool((again - out).norm() <= CLOSE * (out - hidden).norm()):
            return found
    return None


def multiply(model: Layerwise, i: int, names: Sequence[str], by: torch.Tensor) -> None:
    """Multiply the columns of linear layers by ``by`` [in]."""
    for name in names:
        weight = model.linear(i, name).weight
        weight.data = weight.data * by


def _candidates(model: Layerwise, i: int, layer: str, hidden: torch.Tensor) -> Iterator[Before]:
    """What runs before ``layer`` and has as many outputs as it has inputs, or a part of them; the nearest first. ``channel``: none yet.

    Of a linear layer with more outputs the last ones may be meant: of fused [gate, up] the second half, of fused [q, k, v] the last v,
    narrower than q when queries are grouped.
    """
    block, width = model.blocks[i], model.linear(i, layer).in_features
    order: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
        for name, module in block.named_modules()
        if getattr(module, "weight", None) is not None
    ]
    next(model.inputs(i, layer, [hidden]))
    for handle in handles:
        handle.remove()
    nothing = torch.empty(0, dtype=torch.int64)
    for name in reversed(dict.fromkeys(order)):
        module = block.get_submodule(name)
        if name == layer:
            continue
        if type(module) is nn.Linear:
            rows = module.out_features
            parts = (rows,) if rows <= width else (width, (rows - width) // 2)
            for count in dict.fromkeys(parts):
                if count > 0 and width % count == 0:
                    yield Before(name, count, rows - count, 0.0, nothing)
        elif isinstance(module.weight, nn.Parameter) and module.weight.shape == (width,):
            for shift in (0.0, 1.0):
                yield Before(name, width, 0, shift, nothing)


def _factors(count: int, seed: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """``count`` different factors between 0.5 and 2 in random order, and for the n-th smallest the place where it stands."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(count, generator=generator)
    factors = torch.empty(count)
    factors[places] = torch.logspace(-1, 1, count, base=2)
    return factors.to(device), places.to(device)


def _channels(x: torch.Tensor, divided: torch.Tensor, places: torch.Tensor, one: Before) -> torch.Tensor | None:
    """For each input the output whose factor it followed, when every one followed one; ``x`` and ``divided``: [tokens, in]."""
    count, width = one.count, x.shape[1]
    square = x.square().sum(0)
    alive = square > 0
    ratio = (x * divided).sum(0) / square.where(alive, torch.ones_like(square))
    off = (divided - x * ratio).square().sum(0)
    if bool((off > CLOSE**2 * square).any()) or not bool(alive.any()):
        return None
    number = (1 - ratio.clamp(min=1e-9).log2()) * (count - 1) / 2  # of 2^(2 n / (count - 1) - 1) = 1 / ratio
    whole = number.round()
    if bool((((number - whole).abs() > 0.25) | (whole < 0) | (whole >= count))[alive].any()):
        return None
    channel = places[whole.clamp(0, count - 1).long()]
    if int(torch.bincount(channel, minlength=count).min()) == 0:
        return None
    plain = torch.arange(width, device=x.device) % count
    if not bool(
        alive.all()
    ):  # an input that is always 0 tells nothing; in one plain order it has its place all the same
        if count < width or not torch.equal(channel[alive], plain[alive]):
            return None
        return plain
    return channel


@contextmanager
def _kept(block: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """The modules get their parameters back."""
    before = [(p, p.data) for name in names for p in block.get_submodule(name).parameters(recurse=False)]
    try:
        yield
    finally:
        for parameter, data in before:
            parameter.data = data
