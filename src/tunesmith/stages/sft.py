"""Supervised fine-tuning: next-token cross entropy on the assistant's turns, end-of-turn included.

loss = sum over learned tokens t of -log p(x_t | x_<t) / number of learned tokens in the optimizer step
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict

from tunesmith.config.base import Config as BaseConfig
from tunesmith.data.example import Chat
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


@dataclass(frozen=True)
class Row:
    """An encoded conversation. The first token is never learned: nothing comes before it."""

    ids: tuple[int, ...]
    mask: tuple[int, ...]
    origin: str
    dropped_turns: int = 0
    straddling: int = 0

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def weight(self) -> float:
        return float(sum(self.mask[1:]))


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

    renderer: Renderer
    pad_id: int

    def encode(self, example: Example) -> Row:
        assert isinstance(example, Chat), "the data were not adapted to what this stage learns from"
        rendered = self.renderer.render(example)
        return Row(rendered.ids, rendered.mask, rendered.origin, rendered.dropped_turns, rendered.straddling)

    def collate(self, items: Sequence[Row], *, packed: bool) -> Batch:
        import torch

        tokens = sum(row.length for row in items)
        weight = sum(row.weight for row in items)
        if packed:
            ids = [i for row in items for i in row.ids]
            positions = [t for row in items for t in range(row.length)]
            labels = [label for row in items for label in _labels(row)]
            lengths = torch.tensor([row.length for row in items])
            bounds = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).to(torch.int32)
            return Batch(
                torch.tensor([ids]), torch.tensor([positions]), torch.tensor([labels]), None, bounds, weight, tokens
            )
        longest = max(row.length for row in items)

        def padded(values: Sequence[int], fill: int) -> list[int]:
            return [*values, *[fill] * (longest - len(values))]

        return Batch(
            ids_BT=torch.tensor([padded(row.ids, self.pad_id) for row in items]),
            positions_BT=torch.arange(longest).expand(len(items), -1),
            labels_BT=torch.tensor([padded(_labels(row), -100) for row in items]),
            attention_BT=torch.tensor([padded([1] * row.length, 0) for row in items]),
            bounds=None,
            weight=weight,
            tokens=tokens,
        )

    def loss(self, model: Any, batch: Batch) -> Loss:
        from tunesmith.kernels.cross_entropy import IGNORE, summed_cross_entropy

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
            return Loss(summed_cross_entropy(logits.flatten(0, 1), labels.flatten()), batch.weight)
        bounds = batch.bounds.to(device)
        longest = int((batch.bounds[1:] - batch.bounds[:-1]).max())
        inputs |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
        # Logits only where a token is learned: the vocabulary is wide, and prompts need none.
        learned_M = (labels[0] != IGNORE).nonzero().squeeze(-1)
        logits = model(**inputs, logits_to_keep=learned_M).logits
        return Loss(summed_cross_entropy(logits[0], labels[0, learned_M]), batch.weight)


def _labels(row: Row) -> list[int]:
    """The next token where it is learned, else -100; the last token predicts nothing."""
    return [token if learned else -100 for token, learned in zip(row.ids[1:], row.mask[1:])] + [-100]


def build(config: Config, renderer: Renderer) -> Sft:
    """The stage for one renderer."""
    pad = renderer.tokenizer.pad_token_id
    return Sft(renderer, int(pad) if pad is not None else 0)
