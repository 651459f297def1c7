"""A model asked for distributions with one block's weights in memory: ``Layerwise``, with the last norm and the head behind it.

All sequences go through a block before the next one is read, so every weight is read once. They are given beforehand; nothing can be generated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.config.errors import ExportError, UserError
from tunesmith.config.progress import SILENT, Progress
from tunesmith.export.changes import loaded
from tunesmith.export.layerwise import Layerwise, instead, split_call
from tunesmith.export.lora import check_config, scale_of
from tunesmith.export.tensor_files import StoredTensor, read_header, read_json

if TYPE_CHECKING:
    import numpy as np

    from tunesmith.chat.base import Messages, Sampling

LORA = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")


class Blockwise(Layerwise):
    """``Layerwise`` that also gives logits. ``adapter``: the folder of a plain LoRA, which is put beside the weights it changes.

    Raises ExportError for models that cannot be run so, and for other adapters.
    """

    def __init__(
        self, folder: Path, stored: dict[str, StoredTensor], device: torch.device, adapter: Path | None = None
    ) -> None:
        super().__init__(folder, stored, device)
        self.embedding, self.head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        if self.embedding is None or self.head is None:
            raise ExportError(f"{folder}: its embeddings and its output layer cannot be told apart from its blocks")
        names = {module: name for name, module in self.model.named_modules()}
        self.tied = self.head.weight is self.embedding.weight
        if self.tied:
            self.parts[f"{names[self.head]}.weight"] = self.parts.get(f"{names[self.embedding]}.weight", [])
        self.added = _plain_lora(adapter, self.name, len(self.blocks)) if adapter is not None else {}

    @property
    def bytes(self) -> int:
        """About the most memory that its weights take at once."""
        inside = {id(p) for block in self.blocks for p in block.parameters()}
        outside = sum(p.numel() for p in self.model.parameters() if id(p) not in inside)
        block = max(sum(p.numel() for p in block.parameters()) for block in self.blocks)
        embedding, head = self.embedding.weight.numel(), 0 if self.tied else self.head.weight.numel()
        return 4 * max(outside - head + block, outside - (0 if self.tied else embedding)) + 2 * embedding

    def through(self, rows: Sequence[Sequence[int]], progress: Progress = SILENT) -> list[torch.Tensor]:
        """The hidden states behind the last block, fp32 [1, length, width] in main memory, one for each row of token ids."""
        hidden = self.embed(rows)
        for i, block in enumerate(self.blocks):
            self.block(i)
            hooks = [
                block.get_submodule(name).register_forward_hook(_adding(*self._ab(i, name)))
                for name in self.added.get(i, {})
            ]
            hidden = [self.forward(i, h) for h in hidden]
            for hook in hooks:
                hook.remove()
            self.empty(i)
            progress.advance(1)
        return hidden

    def open_head(self) -> None:
        """Give the layers behind the blocks their weights. They stay until ``close_head``."""
        self._fill(self.model, "", outside_blocks=True, without=None if self.tied else self.embedding)

    def close_head(self) -> None:
        """Forget them."""
        self.model.to("meta")

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [length, vocabulary] for what ``through`` gave: the model's own forward, in which the blocks compute nothing."""
        last = len(self.blocks) - 1

        def passing(i: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                out = hidden.to(self.device) if i == last else split_call(args, kwargs)[0]
                return (out,) if self._tuples else out

            return forward

        with instead(self.blocks, passing), torch.no_grad():
            nothing = torch.zeros_like(hidden, device=self.device)
            found: torch.Tensor = self.model(inputs_embeds=nothing, use_cache=False).logits[0]
        return found

    def _ab(self, block: int, name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        a, b, scale = self.added[block][name]
        return loaded(a).to(self.device).float(), loaded(b).to(self.device).float(), scale


class BlockwiseEngine:
    """An engine that tells the distributions of ``sequences`` and nothing else. Raises ExportError for models that cannot be run so."""

    def __init__(
        self, model: Blockwise, sequences: Sequence[Sequence[int]], name: str, progress: Progress = SILENT
    ) -> None:
        self.name, self._model = name, model
        rows = list(dict.fromkeys(tuple(ids) for ids in sequences))
        progress.start("running the model one block at a time", len(model.blocks), "blocks")
        self._hidden = dict(zip(rows, model.through(rows, progress)))
        model.open_head()
        try:
            self.logprobs(min(rows, key=len))
        except Exception as error:
            if not isinstance(error, (RuntimeError, TypeError, ValueError, AttributeError)) or "memory" in str(error):
                raise
            raise ExportError(
                f"{model.folder}: what stands behind its blocks cannot be run alone: {type(error).__name__}: {error}"
            ) from error
        progress.finish()

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        """Natural-log probabilities after each position of one of the sequences: float32, [len(tokens), vocabulary]."""
        if tuple(tokens) not in self._hidden:
            raise UserError(f"{self.name} was not opened for these {len(tokens)} tokens")
        found = torch.log_softmax(self._model.logits(self._hidden[tuple(tokens)]).float(), dim=-1)
        result: np.ndarray = found.cpu().numpy()
        return result

    def stream(self, messages: Messages, sampling: Sampling) -> Iterator[str]:
        """Raises UserError: an answer would need every block for every token."""
        raise UserError(f"{self.name} is run one block at a time and cannot answer")

    def close(self) -> None:
        """Forget weights and states; calling twice is harmless."""
        self._hidden = {}
        self._model.close_head()


def _adding(a: torch.Tensor, b: torch.Tensor, scale: float) -> Callable[..., torch.Tensor]:
    """A forward hook: y + s · (x Aᵀ) Bᵀ (Hu et al., 2021)."""
    return lambda _, args, out: out + scale * (args[0] @ a.t() @ b.t())


def _plain_lora(
    folder: Path, blocks: str, count: int
) -> Mapping[int, dict[str, tuple[StoredTensor, StoredTensor, float]]]:
    """Block -> name of its linear layer -> A, B and s. Raises ExportError for anything but LoRA on linear layers of blocks."""
    config: dict[str, Any] = read_json(folder / "adapter_config.json")
    check_config(str(folder), config)
    special = [key for key in ("use_dora", "modules_to_save", "target_parameters", "trainable_token_indices", "fan_in_fan_out")
               if config.get(key)]  # fmt: skip
    if config.get("peft_type") != "LORA" or special:
        raise ExportError(f"{folder} is no plain LoRA ({', '.join(special) or config.get('peft_type')})")
    pairs: dict[str, dict[str, StoredTensor]] = {}
    for key, tensor in read_header(folder / "adapter_model.safetensors").items():
        found = LORA.fullmatch(key)
        if found is None or not found[1].startswith(f"{blocks}."):
            raise ExportError(f"{folder} is no plain LoRA on blocks ({key})")
        pairs.setdefault(found[1].removeprefix(f"{blocks}."), {})[found[2]] = tensor
    added: dict[int, dict[str, tuple[StoredTensor, StoredTensor, float]]] = {i: {} for i in range(count)}
    for place, pair in pairs.items():
        number, _, name = place.partition(".")
        scale = scale_of(str(folder), config, f"{blocks}.{place}", pair["A"].shape[0])
        added[int(number)][name] = pair["A"], pair["B"], scale
    return added
