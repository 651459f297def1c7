"""The real loop over a model of a few thousand numbers: embeddings, two matrices, a norm and a bias learn to add up tokens.

Quick enough to train once for every optimizer there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tunesmith.config.plugins import load as load_plugin
from tunesmith.runs.folder import RunFolder
from tunesmith.stages.base import Loss
from tunesmith.train.config import OPTIMIZERS, TrainConfig
from tunesmith.train.masters import Masters
from tunesmith.train.optimizers.base import parameter_groups
from tunesmith.train.setup import Setup

WIDTH = 64
"""64 x 64 numbers are as many as quantized optimizers begin to quantize at."""


class Adder(torch.nn.Module):
    """Tokens -> one number per row."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.embed_tokens = torch.nn.Embedding(16, WIDTH)
        self.up = torch.nn.Linear(WIDTH, 2 * WIDTH)
        self.norm = torch.nn.LayerNorm(2 * WIDTH)
        self.dropout = torch.nn.Dropout(0.1)
        self.down = torch.nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.lm_head = torch.nn.Linear(WIDTH, 1, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(rows, tokens) -> (rows,)."""
        hidden = self.norm(torch.tanh(self.up(self.embed_tokens(ids).mean(1))))
        return self.lm_head(self.down(self.dropout(hidden)))[:, 0]


@dataclass(frozen=True)
class Row:
    """A few tokens."""

    ids: tuple[int, ...]
    origin: str
    weight: float = 1.0

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.ids)


class Sums:
    """The stage: a row's number is the sum of its tokens, divided by 32."""

    layout: Any = None
    encode: Any = None
    encode_many: Any = None

    def collate(self, items: Sequence[Row], *, packed: bool) -> torch.Tensor:
        """Ids."""
        return torch.tensor([row.ids for row in items])

    def loss(self, model: Any, batch: torch.Tensor) -> Loss:
        """Squared error."""
        error = model(batch) - batch.sum(1) / 32
        return Loss((error**2).sum(), float(len(batch)))


def rows(count: int) -> list[Row]:
    """Random rows, always the same."""
    drawn = torch.randint(0, 16, (count, 5), generator=torch.Generator().manual_seed(1)).tolist()
    return [Row(tuple(ids), f"row {i}") for i, ids in enumerate(drawn)]


def setup(run: RunFolder, config: TrainConfig, *, dtype: torch.dtype = torch.float32) -> Setup:
    """A model and an optimizer as a new process would have them."""
    torch.manual_seed(config.seed)
    model = Adder()
    masters = Masters(model, dtype)
    groups = parameter_groups(masters.named(), lr=config.lr, weight_decay=config.weight_decay)
    optimizer = load_plugin(OPTIMIZERS, config.optimizer.kind).build(groups, config.optimizer)

    def save_model(folder: Path, state: dict[str, torch.Tensor]) -> None:
        save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")

    return Setup(
        model=model, stage=Sums(), train=rows(24), eval=rows(30)[24:], config=config, run=run, masters=masters,
        optimizer=optimizer, micro_tokens=20, save_model=save_model,
    )  # fmt: skip


def saved(run: RunFolder) -> tuple[Path, dict[str, torch.Tensor]]:
    """The newest checkpoint and its weights."""
    folder = run.checkpoint()
    return folder, load_file(folder / "model.safetensors")
