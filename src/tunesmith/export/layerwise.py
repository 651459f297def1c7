"""A model run block by block over rows of tokens, with the weights of one block in memory at a time.

The list of blocks is found by its structure, not by a family's names. What the model hands to each block besides hidden states
(masks, rotary embeddings, both of each kind in models with sliding windows) is caught from the model's own forward. Rows go through
one at a time, so no padding exists that could matter. Everything is computed in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith.config.errors import ExportError
from tunesmith.export.changes import loaded
from tunesmith.export.experts import empty_model, stored_parts
from tunesmith.export.numbers import FLOATS
from tunesmith.export.tensor_files import StoredTensor

Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]
"""For each block: what it is called with behind the hidden states."""
LONGEST = 2048
"""Tokens of a row that are read; what is longer is cut, so that memory does not grow with the longest row."""


class _Stop(Exception):
    """No error: what was wanted has been seen."""


class Layerwise:
    """The model of ``folder`` without weights, and its ``blocks``, filled and emptied one by one.

    ``stored``: the folder's tensors; ``linears[i]``: names within block i of its linear layers; ``experts``: names in the model of weights
    that hold all experts of a layer. Raises ExportError for a model whose blocks cannot be found, or that has such weights, which no
    linear layer holds (unless ``with_experts``: then the caller sees to them).
    """

    def __init__(
        self, folder: Path, stored: dict[str, StoredTensor], device: torch.device, *, with_experts: bool = False
    ) -> None:
        self.folder, self.stored, self.device = folder, stored, device
        self.model = empty_model(folder).eval().requires_grad_(False)
        self.parts = stored_parts(self.model, stored)
        self.name, self.blocks = _find_blocks(self.model, folder)
        self.owner = self.model.get_submodule(self.name.rpartition(".")[0])
        self.linears = [[n for n, m in block.named_modules() if type(m) is nn.Linear] for block in self.blocks]
        self._calls: dict[int, Calls] = {}
        self._tuples = False
        if not any(self.linears):
            raise ExportError(f"{folder}: its blocks hold no linear layers", hint="export it --to gguf instead")
        self.experts = [
            f"{self.name}.{i}.{name}"
            for i, block in enumerate(self.blocks)
            for name, parameter in block.named_parameters()
            if parameter.ndim > 2
            and not isinstance(block.get_submodule(name.rpartition(".")[0]), nn.modules.conv._ConvNd)
        ]
        if self.experts and not with_experts:
            raise ExportError(
                f"{folder} is a mixture of experts ({self.experts[0]}): its experts are computed from one tensor, where "
                "what enters each of them cannot be seen",
                hint="export it --to fp8, which needs no text, or --to gguf, which quantizes experts too",
            )

    def cut(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """``rows`` of token ids without empty ones, each at most ``LONGEST`` and what the model reads at once."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or LONGEST
        return [[int(token) for token in row[: min(limit, LONGEST)]] for row in rows if len(row) > 0]

    def linear(self, block: int, name: str) -> nn.Linear:
        """A linear layer of a block."""
        found = self.blocks[block].get_submodule(name)
        assert isinstance(found, nn.Linear)
        return found

    def weight_name(self, block: int, linear: str) -> str:
        """The stored name of the weight of a linear layer; see ``tensor_name``."""
        return self.tensor_name(block, f"{linear}.weight")

    def tensor_name(self, block: int, parameter: str) -> str:
        """The stored name of a parameter of a block. Raises ExportError when the file calls it otherwise than the model."""
        name = f"{self.name}.{block}.{parameter}"
        if [part[0] for part in self.parts.get(name, ())] != [name]:
            raise ExportError(
                f"{self.folder}: no tensor {name} in its files, which call their weights otherwise than transformers does",
                hint="open it with transformers and save it again, then export that folder",
            )
        return name

    def embed(self, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """The hidden states before the first block, fp32 [1, length, width] in main memory, one for each row of token ids."""
        self._fill(self.owner, self.name.rpartition(".")[0], outside_blocks=True)
        try:
            hidden = [self._first_call(row)[0] for row in rows]
            first = self.block(0)
            with torch.no_grad():
                h, args, kwargs = self._first_call(rows[0], away=False)
                self._tuples = isinstance(first(h, *args, **kwargs), tuple)
            self.empty(0)
            for row in rows:
                if len(row) not in self._calls:
                    self._calls[len(row)] = self._all_calls(row)
            if not _same(self._calls[len(rows[0])], self._all_calls(list(reversed(rows[0])))):
                raise ExportError(
                    f"{self.folder}: what its blocks are given depends on the text besides the hidden states, which is not supported",
                    hint="export it --to gguf instead",
                )
        finally:
            for child_name, child in self.owner.named_children():
                if f".{child_name}" != f".{self.name.rpartition('.')[2]}":
                    child.to("meta")
        return hidden

    def block(self, i: int) -> nn.Module:
        """Block ``i`` with its weights, on the device."""
        self._fill(self.blocks[i], f"{self.name}.{i}")
        return self.blocks[i]

    def empty(self, i: int) -> None:
        """Forget the weights of block ``i``."""
        self.blocks[i].to("meta")

    def forward(self, i: int, hidden: torch.Tensor) -> torch.Tensor:
        """What the filled block ``i`` makes of ``hidden`` [1, length, width]; from and to main memory."""
        args, kwargs = self._calls[hidden.shape[1]][i]
        with torch.no_grad():
            out = self.blocks[i](hidden.to(self.device), *args, **kwargs)
        return (out[0] if isinstance(out, tuple) else out).cpu()

    def groups(self, i: int, hidden: torch.Tensor) -> list[list[str]]:
        """The linear layers of block ``i`` in the order they are called in; those that get the very same input stand together."""
        seen: list[tuple[torch.Tensor, list[str]]] = []

        def note(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
                for tensor, names in seen:
                    if tensor is args[0]:
                        names.append(name)
                        return
                seen.append((args[0], [name]))

            return hook

        with _hooks([(self.linear(i, n), note(n)) for n in self.linears[i]]):
            self.forward(i, hidden)
        return [names for _, names in seen]

    def inputs(self, i: int, linear: str, hidden: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """What a linear layer of block ``i`` gets, fp32 [tokens, in] on the device, for each of the rows ``hidden``; the block is run no further."""
        module, width = self.linear(i, linear), self.linear(i, linear).in_features
        seen: list[torch.Tensor] = []

        def catch(_: nn.Module, args: tuple[Any, ...]) -> None:
            seen.append(args[0].reshape(-1, width))
            raise _Stop

        for h in hidden:
            with _hooks([(module, catch)]):
                try:
                    self.forward(i, h)
                except _Stop:
                    pass
            if seen:
                yield seen.pop()

    def hessian(self, i: int, linear: str, hidden: Sequence[torch.Tensor]) -> torch.Tensor:
        """The mean of x xᵀ over the inputs x of a linear layer of block ``i``, fp32 [in, in] on the device."""
        width = self.linear(i, linear).in_features
        total, count = torch.zeros(width, width, device=self.device), 0
        for x in self.inputs(i, linear, hidden):
            total.addmm_(x.t(), x)
            count += len(x)
        return total.div_(max(1, count))

    def _first_call(self, row: Sequence[int], *, away: bool = True) -> Any:
        """Hidden states (in main memory if ``away``) and the other arguments of the first block."""
        caught: list[Any] = []

        def catch(*args: Any, **kwargs: Any) -> None:
            hidden, args, kwargs = split_call(args, kwargs)
            caught.append((hidden.float().cpu() if away else hidden.float(), args, kwargs))
            raise _Stop

        with instead(self.blocks[:1], lambda _: catch):
            try:
                self._run(row)
            except _Stop:
                pass
        return caught[0]

    def _all_calls(self, row: Sequence[int]) -> Calls:
        calls: Calls = []

        def passing(_: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                hidden, args, kwargs = split_call(args, kwargs)
                calls.append((args, kwargs))
                return (hidden,) if self._tuples else hidden

            return forward

        with instead(self.blocks, passing):
            self._run(row)
        return calls

    def _run(self, row: Sequence[int]) -> None:
        ids = torch.tensor([list(row)], device=self.device)
        with torch.no_grad():
            self.owner(input_ids=ids, use_cache=False)

    def _fill(
        self, module: nn.Module, prefix: str, *, outside_blocks: bool = False, without: nn.Module | None = None
    ) -> None:
        """Give ``module`` (``without`` one inside it) its stored tensors in fp32, and let transformers compute the buffers that no file holds."""
        from transformers import initialization

        skipped = f"{self.name}." if outside_blocks else None
        start = f"{prefix}." if prefix else ""
        computed = []
        for place, inner in module.named_modules():
            path = start + place + "." if place else start
            if inner is without or (skipped and (path.startswith(skipped) or path == skipped)):
                continue
            for name, parameter in list(inner._parameters.items()):
                if parameter is not None:
                    tensor = self._tensor(path + name, parameter.shape)
                    inner._parameters[name] = nn.Parameter(tensor, requires_grad=False)
                    inner._parameters[name]._is_hf_initialized = True
            for name, buffer in list(inner._buffers.items()):
                if buffer is None:
                    continue
                if name in inner._non_persistent_buffers_set:
                    inner._buffers[name] = torch.empty_like(buffer, device=self.device)
                    computed.append(inner)
                else:
                    inner._buffers[name] = self._tensor(path + name, buffer.shape)
                    inner._buffers[name]._is_hf_initialized = True
        with torch.no_grad(), initialization.guard_torch_init_functions():
            for inner in dict.fromkeys(computed):
                self.owner._init_weights(inner)

    def _tensor(self, name: str, shape: torch.Size) -> torch.Tensor:
        parts = self.parts.get(name, [])
        if len(parts) != 1 or parts[0][1] is not None:
            raise ExportError(f"{self.folder}: its files do not hold {name}, or not in one piece")
        stored = self.stored[parts[0][0]]
        if stored.dtype not in FLOATS:
            raise ExportError(f"{stored.file}: {stored.name} is stored as {stored.dtype}, not in 16 or 32 bit")
        if stored.shape != tuple(shape):
            raise ExportError(f"{stored.file}: {stored.name} is {list(stored.shape)}, the model wants {list(shape)}")
        return loaded(stored).to(self.device).float()


def _find_blocks(model: nn.Module, folder: Path) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder's blocks: as many as the config has hidden layers; of several such lists the heaviest."""
    config: Any = model.config
    count = getattr(config.get_text_config(), "num_hidden_layers", None)
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not found:
        raise ExportError(
            f"{folder}: no list of {count} blocks in {type(model).__name__}, so it cannot be run block by block",
            hint="export it --to gguf instead",
        )
    return max(found, key=lambda entry: sum(p.numel() for p in entry[1].parameters()))


def split_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]:
    """Hidden states, and the arguments without them."""
    if args:
        return args[0], args[1:], kwargs
    return kwargs["hidden_states"], (), {k: v for k, v in kwargs.items() if k != "hidden_states"}


@contextmanager
def instead(blocks: nn.ModuleList, make: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
    """Blocks that keep their attributes, which models read, and compute something else."""
    try:
        for i, block in enumerate(blocks):
            block.forward = make(i)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


@contextmanager
def _hooks(wanted: list[tuple[nn.Module, Callable[..., None]]]) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(hook) for module, hook in wanted]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _same(a: Any, b: Any) -> bool:
    from torch.utils._pytree import tree_leaves

    pairs = [(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True) if isinstance(x, torch.Tensor)]
    return all(isinstance(y, torch.Tensor) and torch.equal(x, y) for x, y in pairs)
