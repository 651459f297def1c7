"""The loop on a model of one matrix: a stage without tokenizer, for tests of what the loop decides."""

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


@dataclass(frozen=True)
class Number:
    """A row: learn to say ``value``; ``loss_times`` makes it a spike."""

    value: float
    number: int = 0
    length: int = 10
    loss_times: float = 1.0

    weight = 1.0

    @property
    def origin(self) -> str:
        return f"numbers.jsonl:{self.number}"


class Squares:
    """Loss: squared distance of the model's one weight to the value."""

    layout: Any = None

    def encode(self, example: Any) -> Any: ...

    def encode_many(self, examples: Any) -> Any: ...

    def collate(self, items: Sequence[Number], *, packed: bool) -> Sequence[Number]:
        return items

    def loss(self, model: Any, batch: Sequence[Number]) -> Loss:
        noise = torch.rand(()) * 0.01 if model.training else 0.0
        total = sum((model.weight.sum() - n.value) ** 2 * n.loss_times for n in batch) + noise
        return Loss(total, float(len(batch)), {"accuracy": (torch.tensor(1.0), float(len(batch)))})


class Weight(torch.nn.Module):
    config: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, 1))


def tiny_setup(run: RunFolder, train: Sequence[Number], held: Sequence[Number] = (), **settings: Any) -> Setup:
    """Everything ``train`` needs, from a seed of its own."""
    config = TrainConfig(**{"batch": 1, "lr": 0.01, "warmup": 0, "schedule": "constant", "clip": 0, **settings})
    torch.manual_seed(0)
    model = Weight()
    masters = Masters(model, torch.float32)
    groups = parameter_groups(masters.named(), lr=config.lr, weight_decay=0)
    return Setup(
        model=model, stage=Squares(), train=train, eval=held, config=config, run=run, masters=masters,
        optimizer=load_plugin(OPTIMIZERS, config.optimizer.kind).build(groups, config.optimizer), micro_tokens=10,
        save_model=lambda to, state: save_file(state, to / "adapter_model.safetensors"),
    )  # fmt: skip


def resume_of(run: RunFolder, step: int | None = None) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = run.checkpoint(step)
    return folder, load_file(folder / "adapter_model.safetensors")


class Said:
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, task: str, total: float | None = None, unit: str = "") -> None: ...

    def advance(self, amount: float = 1, note: str = "") -> None: ...

    def finish(self, note: str = "") -> None: ...

    def say(self, line: str) -> None:
        self.lines.append(line)
