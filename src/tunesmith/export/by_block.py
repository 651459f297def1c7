"""What is common to targets that quantize block by block: which layers can be packed and in which groups, the way through the blocks, and
what is written in the end. Knows no way to quantize.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tunesmith.config.errors import ExportError
from tunesmith.config.progress import Progress
from tunesmith.export.block_files import BlockFiles
from tunesmith.export.layerwise import Layerwise
from tunesmith.export.packed_checkpoint import unchanged
from tunesmith.export.tensor_files import PlannedTensor, StoredTensor

WORD = 32
"""Widths must be multiples of it, so that 2, 3, 4 and 8 bit values fill whole 32-bit words in both directions."""
GROUPS = (128, 64, 32)
Tensors = dict[str, torch.Tensor]


@dataclass
class Done:
    """``errors``: what a block's figures say of errors, by stored name; ``kept``: layers that stay in 16 bits, by stored name without ``.weight``."""

    errors: dict[str, float] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)

    @property
    def mean_error(self) -> float:
        return sum(self.errors.values()) / max(1, len(self.errors))


def packable(model: Layerwise, block: int, linear: str) -> bool:
    """Whether the widths of a layer fill whole words."""
    module = model.linear(block, linear)
    return module.in_features % WORD == 0 and module.out_features % WORD == 0


def group_size(model: Layerwise, wanted: int | None) -> int:
    """How many inputs share a scale. Raises ExportError when ``wanted`` does not divide a width, or when no layer can be packed at all."""
    widths: dict[int, str] = {
        model.linear(i, name).in_features: model.weight_name(i, name)
        for i, names in enumerate(model.linears)
        for name in names
        if packable(model, i, name)
    }
    if not widths:
        raise ExportError(
            f"no linear layer of this model has widths that are multiples of {WORD}, as packed files demand"
        )
    fits = [size for size in GROUPS if all(width % size == 0 for width in widths)]
    if wanted is None:
        return fits[0]
    for width, name in widths.items():
        if wanted > 0 and width % wanted:
            raise ExportError(
                f"group_size={wanted} does not divide the {width} inputs of {name}",
                hint=f"sizes that divide every layer of this model: {', '.join(map(str, fits))}, -1 (whole rows)",
            )
    return wanted


def room(model: Layerwise, stored: Mapping[str, StoredTensor], bits: int) -> int:
    """Bytes that the finished blocks and the folder take together, scales and zeros of the smallest groups included."""
    linears = [stored[model.weight_name(i, n)] for i, names in enumerate(model.linears) for n in names]
    packed = int(sum(math.prod(t.shape) for t in linears) * (bits / 8 + 3 / WORD))
    return 2 * packed + sum(t.nbytes for t in stored.values()) - sum(t.nbytes for t in linears) + 2**22


def through_blocks(
    model: Layerwise, rows: Sequence[Sequence[int]], files: BlockFiles, progress: Progress, what: str,
    make: Callable[[int, Sequence[torch.Tensor]], tuple[Tensors, dict[str, Any]]], restore: Callable[[int, Tensors], None],
) -> Done:  # fmt: skip
    """Quantize every block, each into its file of ``files``; those that are there already are passed through. Raises ExportError.

    ``make`` (number, hidden states) returns a block's tensors by stored name and its figures (``errors``, ``kept``), and leaves the block with
    the weights that they stand for; ``restore`` (number, tensors) does the latter alone. So a layer is calibrated on what the packed
    ones before it put out, and an export that was killed ends in the same bytes.
    """
    done, finished = Done(), files.finished()
    if finished:
        progress.say(f"{finished} of {len(model.blocks)} blocks were finished before: going on from there")
    progress.start(what, sum(len(names) for names in model.linears), "layers")
    hidden = model.embed(rows)
    for i in range(len(model.blocks)):
        model.block(i)
        if i < finished:
            restore(i, files.load(i))
            progress.advance(len(model.linears[i]))
        else:
            files.save(i, *make(i, hidden))
        figures = files.figures(i)
        done.errors |= figures["errors"]
        done.kept += figures["kept"]
        if i + 1 < len(model.blocks):
            hidden = [model.forward(i, h) for h in hidden]
        model.empty(i)
    progress.finish(f"what the layers put out is off by {done.mean_error:.2%} (mean squared error)")
    return done


def with_blocks(stored: Mapping[str, StoredTensor], files: BlockFiles, blocks: int) -> list[PlannedTensor]:
    """What to write, in the source's order: tensors of the finished blocks in the place of those of their name, or of their layer's weight."""
    new: dict[str, list[PlannedTensor]] = {}
    for i in range(blocks):
        for name, tensor in files.stored(i).items():
            place = name if name in stored else name.rpartition(".")[0] + ".weight"
            new.setdefault(place, []).append(unchanged(tensor))
    return [one for name, tensor in stored.items() for one in new.get(name) or [unchanged(tensor)]]


def kept_note(kept: Sequence[str]) -> tuple[str, ...]:
    """The sentence about layers that stay in 16 bits, if there are any."""
    if not kept:
        return ()
    return (
        f"{len(kept)} layers stay in 16 bits, first {kept[0]}: never used, or widths that are no multiples of {WORD}",
    )
