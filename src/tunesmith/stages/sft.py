"""Supervised fine-tuning: next-token cross entropy on the assistant's turns, end-of-turn included.

loss = sum over learned tokens t of -log p(x_t | x_<t) / number of learned tokens in the optimizer step
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import ConfigDict

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.errors import UserError
from tunesmith.data.example import Chat
from tunesmith.render.batch import COUNTS, BatchRenderer, Encoded, encoded
from tunesmith.render.store import Layout
from tunesmith.stages.base import Loss

if TYPE_CHECKING:
    import torch

    from tunesmith.data.example import Example
    from tunesmith.render.conversation import Renderer


EXAMPLES = "chat"
"""The kind of example (``data.example.KINDS``) it learns from."""


class Config(BaseConfig):
    """Supervised fine-tuning on conversations."""

    model_config = ConfigDict(json_schema_extra={"zh": "监督微调：在对话上学习助手的回答。"})

    kind: Literal["sft"] = "sft"
    """Supervised fine-tuning."""


class Row(Encoded):
    """An encoded conversation. Its first token is never learned: nothing comes before it."""

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def weight(self) -> float:
        return float(np.count_nonzero(self.mask[1:]))


LAYOUT = Layout(Row, {"ids": "uint32", "mask": "bool"}, COUNTS)


@dataclass(frozen=True)
class Batch:
    """Shapes: B rows (1 when packed), T tokens, M learned positions. ``bounds``: cumulative lengths when packed.

    ``labels_BT[b, t]`` is the token after t where that one is learned, else -100.
    """

    ids_BT: torch.Tensor
    positions_BT: torch.Tensor
    labels_BT: torch.Tensor
    attention_BT: torch.Tensor | None
    bounds: torch.Tensor | None
    weight: float
    tokens: int


@dataclass(frozen=True)
class Sft:
    """See ``stages.base.Stage``."""

    batches: BatchRenderer
    pad_id: int
    layout: Layout = LAYOUT

    def encode(self, example: Example) -> Row:
        return _row(encoded(self.batches.renderer.render(_chat(example))))

    def encode_many(self, examples: Sequence[Example]) -> list[Row | UserError]:
        results = self.batches.encode([_chat(example) for example in examples])
        return [result if isinstance(result, UserError) else _row(result) for result in results]

    def collate(self, items: Sequence[Row], *, packed: bool) -> Batch:
        import torch

        tokens = sum(row.length for row in items)
        weight = sum(row.weight for row in items)
        if packed:
            ids = torch.from_numpy(np.concatenate([row.ids for row in items]).astype(np.int64))
            positions = torch.cat([torch.arange(row.length) for row in items])
            labels = torch.from_numpy(np.concatenate([_labels(row) for row in items]))
            lengths = torch.tensor([row.length for row in items])
            bounds = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).to(torch.int32)
            return Batch(ids[None], positions[None], labels[None], None, bounds, weight, tokens)
        longest = max(row.length for row in items)

        def padded(rows: Sequence[np.ndarray], fill: int) -> torch.Tensor:
            table = np.full((len(rows), longest), fill, dtype=np.int64)
            for line, row in zip(table, rows):
                line[: len(row)] = row
            return torch.from_numpy(table)

        return Batch(
            ids_BT=padded([row.ids for row in items], self.pad_id),
            positions_BT=torch.arange(longest).expand(len(items), -1),
            labels_BT=padded([_labels(row) for row in items], -100),
            attention_BT=padded([np.ones(row.length) for row in items], 0),
            bounds=None,
            weight=weight,
            tokens=tokens,
        )

    def loss(self, model: Any, batch: Batch) -> Loss:
        from tunesmith.kernels.cross_entropy import IGNORE

        device = next(model.parameters()).device
        labels = batch.labels_BT.to(device)
        inputs: dict[str, Any] = {
            "input_ids": batch.ids_BT.to(device),
            "position_ids": batch.positions_BT.to(device),
            "use_cache": False,
        }
        if batch.attention_BT is not None:
            inputs["attention_mask"] = batch.attention_BT.to(device)
        if batch.bounds is None:
            logits = model(**inputs).logits
            return _summed(logits.flatten(0, 1), labels.flatten(), batch.weight)
        bounds = batch.bounds.to(device)
        longest = int((batch.bounds[1:] - batch.bounds[:-1]).max())
        inputs |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
        # Logits only where a token is learned: the vocabulary is wide, and prompts need none.
        learned_M = (labels[0] != IGNORE).nonzero().squeeze(-1)
        logits = model(**inputs, logits_to_keep=learned_M).logits
        return _summed(logits[0], labels[0, learned_M], batch.weight)


def _summed(logits_NV: torch.Tensor, labels_N: torch.Tensor, weight: float) -> Loss:
    """Cross entropy, and how many of the learned tokens are the most likely ones (labels of -100 never are)."""
    from tunesmith.kernels.cross_entropy import summed_cross_entropy

    right = (logits_NV.detach().argmax(-1) == labels_N).sum()
    return Loss(summed_cross_entropy(logits_NV, labels_N), weight, {"accuracy": (right, weight)})


def _labels(row: Row) -> np.ndarray:
    """The next token where it is learned, else -100; the last token predicts nothing."""
    labels = np.full(row.length, -100, dtype=np.int64)
    labels[:-1] = np.where(row.mask[1:], row.ids[1:].astype(np.int64), -100)
    return labels


def _chat(example: Example) -> Chat:
    assert isinstance(example, Chat), "the data were not adapted to what this stage learns from"
    return example


def _row(result: Encoded) -> Row:
    return Row(**vars(result))


def build(config: Config, renderer: Renderer) -> Sft:
    """The stage for one renderer."""
    pad = renderer.tokenizer.pad_token_id
    return Sft(BatchRenderer(renderer), int(pad) if pad is not None else 0)
