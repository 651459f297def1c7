"""LoRA on fused experts: all experts of a layer are one 3D parameter in the model, on disk often a tensor for each expert.

How the two go together is transformers' knowledge (``conversion_mapping``); asked on a model without weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import ExportError
from tunesmith.export.changes import Blocks, Step, load
from tunesmith.export.lora import pair, scale_of
from tunesmith.export.model_config import load_config, model_class
from tunesmith.export.tensor_files import StoredTensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ExpertDelta:
    """scale · Bₑ Aₑ for each of ``count`` experts e. A [r · count, in], B [out, r · count] as peft stacks them.

    ``expert``, ``rows``: the part of it that a tensor of one expert holds; None = the whole parameter [count, …].
    """

    a: StoredTensor
    b: StoredTensor
    scale: float
    count: int
    flipped: bool
    """Whether the parameter is [count, in, out] and not [count, out, in]."""
    expert: int | None = None
    rows: tuple[int, int] = (0, 0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor it changes."""
        out, width = self.b.shape[0], self.a.shape[1]
        one = (width, out) if self.flipped else (out, width)
        return (self.count, *one) if self.expert is None else (self.rows[1] - self.rows[0], one[1])

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """See ``Change``."""
        return str(list(self.shape)) if self.shape != shape else None

    def open(self, before: Blocks, dtype: torch.dtype) -> Step:
        """See ``Change``."""
        import torch

        a = load(self.a).reshape(self.count, -1, self.a.shape[1])
        b = load(self.b).reshape(self.b.shape[0], -1, self.count).permute(2, 0, 1)
        left, right = (a.transpose(1, 2), b.transpose(1, 2)) if self.flipped else (b, a)
        if self.expert is not None:
            left, right = left[self.expert, self.rows[0] : self.rows[1]][None], right[self.expert][None]
        height = left.shape[1]

        def step(rows: torch.Tensor, start: int) -> torch.Tensor:
            added, done = [], start
            while done < start + len(rows):
                expert, first = divmod(done, height)
                last = min(height, first + start + len(rows) - done)
                added.append(left[expert, first:last] @ right[expert])
                done += last - first
            return rows + torch.cat(added) * self.scale

        return step


def expert_deltas(
    where: str, config: dict[str, Any], wrapped: dict[str, dict[int, dict[str, StoredTensor]]], base: Path,
    stored: dict[str, StoredTensor],
) -> dict[str, ExpertDelta]:  # fmt: skip
    """Stored name in the ``base`` -> its change. ``wrapped``: module -> depth -> A and B. Raises ExportError.

    peft wraps a module once for each parameter of it that has an adapter, the first parameter innermost; ``depth`` counts
    from outside.
    """
    model = empty_model(base)
    targets = tuple(config.get("target_parameters") or ())
    found: dict[str, ExpertDelta] = {}
    places = stored_parts(model, stored)
    for module, by_depth in wrapped.items():
        try:
            holder = model.get_submodule(module)
        except AttributeError:
            raise ExportError(
                f"{where}: the base has no {module}", hint="adapter and base do not belong together"
            ) from None
        names = [f"{module}.{name}" for name, _ in holder.named_parameters(recurse=False)]
        names = [name for name in names if any(name == one or name.endswith(f".{one}") for one in targets)]
        if len(names) != len(by_depth):
            raise ExportError(f"{where}: {module} has {len(by_depth)} adapters for {len(names)} weights")
        for depth, parts in by_depth.items():
            name = names[len(names) - 1 - depth]
            a, b = pair(where, name, parts)
            shape = tuple(model.get_parameter(name).shape)
            if len(shape) != 3:
                raise ExportError(f"{where}: {name} is no weight of fused experts, which cannot be merged yet")
            scale = scale_of(where, config, name, a.shape[0] // shape[0])
            whole = ExpertDelta(a, b, scale, shape[0], bool(getattr(holder, "is_transposed", False)))
            if whole.shape != shape:
                raise ExportError(
                    f"{name} is {list(shape)} in the base, the adapter was trained for {list(whole.shape)}"
                )
            for key, expert, rows in places.get(name, ()):
                found[key] = replace(whole, expert=expert, rows=rows)
            if name not in places:
                raise ExportError(f"{base}: it is not known how {name} is stored there, so it cannot be merged yet")
    return found


Part = tuple[str, int | None, tuple[int, int]]
"""Stored name, the expert it belongs to (None: all), and its rows among those of one expert."""


def stored_parts(model: Any, stored: dict[str, StoredTensor]) -> dict[str, list[Part]]:
    """Parameter of the model -> the stored tensors that it is made from, where that is known here."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        Concatenate,
        MergeModulelist,
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(model)
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    known = [name for name, _ in model.named_parameters()]
    found: dict[str, list[Part]] = {name: [(name, None, (0, 0))] for name in known if name in stored}
    heights: dict[tuple[str, str], int] = {}
    pieces: list[tuple[str, str, str, list[str]]] = []
    for key, tensor in stored.items():
        if key in found:
            continue
        name, pattern = rename_source_key(key, renamings, converters)
        if pattern is None:
            found.setdefault(name, []).append((key, None, (0, 0)))
            continue
        converter = next(one for one in converters if pattern in one.source_patterns)
        steps = [(type(step), getattr(step, "dim", None)) for step in converter.operations]
        if steps not in ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)]) or len(tensor.shape) != 2:
            continue
        heights[name, pattern] = tensor.shape[0]
        pieces.append((name, key, pattern, list(converter.source_patterns)))
    for name, key, pattern, patterns in pieces:
        start = sum(heights[name, one] for one in patterns[: patterns.index(pattern)])
        number = re.search(r"experts\.(\d+)\.", key)
        if number is not None:
            rows = (start, start + heights[name, pattern])
            found.setdefault(name, []).append((key, int(number[1]), rows))
    return found


def empty_model(folder: Path) -> Any:
    """The model of ``folder`` with shapes and no weights. Raises ExportError."""
    import torch

    config = load_config(folder)
    with torch.device("meta"):
        return model_class(config)(config)
