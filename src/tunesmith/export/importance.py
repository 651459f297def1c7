"""How much each column of each weight matters: the mean square of what enters it while the model reads a text.

Rounding a weight w of a column whose input x is large costs more: the error of the output is (w' - w)^2 x^2 on average. ggml weighs its
rounding errors by these means; llama.cpp collects them in ``llama-imatrix``. Here every product of an input with a stored weight is seen
while transformers computes (``torch.overrides``), whether a linear layer or an expert of a fused block multiplies.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.config.errors import ExportError
from tunesmith.config.progress import Progress
from tunesmith.export.gguf_plan import Outline
from tunesmith.export.imatrix import Entry

if TYPE_CHECKING:
    import torch

LONGEST = 2048
"""Tokens of a row that are read; what is longer is cut."""
NOT_ITS_INPUT = re.compile(r"\.attn_k_b\.weight$")
"""Transposed by the converter: what enters it in llama.cpp is nothing that transformers computes."""


class Watch:
    """A context in which products with the ``named`` weights are added up. ``sums``: name -> [matrices, width] float64, ``counts`` [matrices]."""

    def __init__(self, named: dict[str, torch.Tensor]) -> None:
        import torch
        from torch.overrides import TorchFunctionMode

        self.sums: dict[str, Any] = {}
        self.counts: dict[str, Any] = {}
        places = sorted((w.data_ptr(), name, w) for name, w in named.items())
        starts = [start for start, _, _ in places]
        products = {
            torch.nn.functional.linear,
            torch.matmul,
            torch.Tensor.matmul,
            torch.Tensor.__matmul__,
            torch.bmm,
            torch.Tensor.bmm,
        }
        added = {torch.addmm, torch.Tensor.addmm}
        watch = self

        def find(weight: Any) -> tuple[str, int, torch.Tensor] | None:
            """Name and matrix of a stored weight that ``weight`` is, or is a part of."""
            if not isinstance(weight, torch.Tensor) or weight.ndim < 2:
                return None
            at = bisect.bisect_right(starts, weight.data_ptr()) - 1
            if at < 0:
                return None
            start, name, whole = places[at]
            step = math.prod(whole.shape[1:] if whole.ndim == 3 else whole.shape) * whole.element_size()
            matrix, rest = divmod(weight.data_ptr() - start, step)
            if rest or matrix >= (whole.shape[0] if whole.ndim == 3 else 1):
                return None
            return name, matrix, whole

        class Mode(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if (func in products or func in added) and len(args) > 1:
                    left, right = args[1:3] if func in added else args[:2]
                    with torch._C.DisableTorchFunction():
                        if (found := find(right)) is not None:
                            watch.add(*found, left, right)
                        elif func is not torch.nn.functional.linear and (found := find(left)) is not None:
                            watch.add(*found, right.transpose(-1, -2), left)
                return func(*args, **(kwargs or {}))

        self._mode: Any = Mode()

    def add(self, name: str, matrix: int, whole: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
        """``x`` [*, rows, width] enters matrix ``matrix`` of the weight, or, where ``weight`` is all of them, one each."""
        matrices = whole.shape[0] if whole.ndim == 3 else 1
        width = x.shape[-1]
        if name not in self.sums:
            self.sums[name] = np.zeros((matrices, width))
            self.counts[name] = np.zeros(matrices, np.int64)
        if weight.ndim == 3 and x.ndim == 3 and len(x) == matrices:
            squares = x.float().square()
            self.sums[name] += squares.sum(1).double().cpu().numpy()
            self.counts[name] += (squares.sum(-1) > 0).sum(1).cpu().numpy()  # rows of zeros were sent to another expert
            return
        rows = x.reshape(-1, width)
        self.sums[name][matrix] += rows.float().square().sum(0).double().cpu().numpy()
        self.counts[name][matrix] += len(rows)

    def __enter__(self) -> Watch:
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)


def collect(source: Path, rows: Sequence[Sequence[int]], told: Outline, progress: Progress) -> dict[str, Entry]:
    """Tensor of the GGUF -> its entry, from the model in ``source`` reading ``rows`` of token ids. Raises ExportError.

    The model is opened as it is stored, in 32 bits on a CPU when that fits twice; the output and the embedding are left out, as
    llama-imatrix leaves them out.
    """
    import torch

    from tunesmith.export.tensor_files import read_model
    from tunesmith.models.devices import best_device, memory
    from tunesmith.models.open import open_model

    stored = read_model(source)
    device = best_device()
    numbers = sum(math.prod(t.shape) for t in stored.values())
    half = {"F16": torch.float16, "BF16": torch.bfloat16}.get(
        max(stored.values(), key=lambda t: t.nbytes).dtype, torch.float32
    )
    dtype = torch.float32 if device.type == "cpu" and 8 * numbers < memory(device).total else half
    progress.start("importance matrix", sum(min(len(row), LONGEST) for row in rows), "tokens")
    model = open_model(source, dtype=dtype, device=device)
    if hasattr(model, "set_experts_implementation") and model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    model.eval()
    with torch.no_grad(), Watch(dict(model.named_parameters())) as watch:
        for row in rows:
            ids = torch.tensor([list(row)[:LONGEST]], device=device)
            model.base_model(input_ids=ids, use_cache=False)
            progress.advance(ids.shape[1])
    found = entries(model, stored, told, watch)
    progress.finish(f"{len(found)} weights")
    if not found:
        raise ExportError(
            f"{source}: no weight of this architecture could be followed into the GGUF", hint="take imatrix=off"
        )
    return found


def entries(model: Any, stored: dict[str, Any], told: Outline, watch: Watch) -> dict[str, Entry]:
    """What was seen, under the names that the weights have in the GGUF."""
    from tunesmith.export.experts import stored_parts

    parts = stored_parts(model, stored)
    found: dict[str, Entry] = {}
    for name, sums in watch.sums.items():
        for place in places(name, [key for key, _, _ in parts.get(name, ())], told, sums.shape):
            shape = told.tensors[place]
            matrices = shape[-3] if len(shape) > 2 else 1
            counts = watch.counts[name]
            if len(sums) != matrices:  # one input for all its matrices
                found[place] = Entry(np.repeat(sums, matrices, 0), np.repeat(counts, matrices, 0))
            else:
                found[place] = Entry(sums, counts)
    for place, entry in found.items():
        if not np.isfinite(entry.sums).all():
            raise ExportError(
                f"the importance of {place} is not finite",
                hint="this model overflows in its precision; take imatrix=off",
            )
    return found


def places(name: str, keys: Sequence[str], told: Outline, seen: tuple[int, ...]) -> list[str]:
    """The GGUF's tensors that a parameter, stored as ``keys``, ends up in and whose input has the ``seen`` [matrices, width]."""
    named = [place for key in keys for place in told.sources.get(key, ())]
    layer = re.search(r"\.(\d+)\.", name)
    if (
        seen[0] > 1 and layer
    ):  # experts: the converter stacks them when it has seen the last, so they are found by what they do
        down = re.search(r"down|output_linear|w2", name.rsplit("experts", 1)[-1].rsplit(f".{layer[1]}.", 1)[-1])
        kind = r"ffn_down_exps\.weight$" if down else r"ffn_(gate|up|gate_up)_exps\.weight$"
        named = [place for place in told.tensors if re.match(rf"blk\.{layer[1]}\.{kind}", place)]
    return [
        place
        for place in dict.fromkeys(named)
        if place.startswith("blk.")
        and place.endswith(".weight")
        and not NOT_ITS_INPUT.search(place)
        and len(told.tensors[place]) > 1
        and told.tensors[place][-1] == seen[1]
        and seen[0] in (1, told.tensors[place][-3] if len(told.tensors[place]) > 2 else 1)
    ]
