"""BAdam (Luo et al., 2024, arXiv:2404.02827): Adam on one block of the model at a time.

``layer``: a block is one layer of the model; it is learned for ``switch_every`` steps with fresh Adam moments, then the
next one. The others get no gradient at all (``active_names``, which ``train.active`` turns into ``requires_grad``), so
gradients, moments and much of the backward pass are those of one layer.

``ratio``: in every matrix a share of the entries is learned, others after ``switch_every`` steps; moments are kept for
these entries only. Gradients are those of the whole model.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import torch

from tunesmith.config.errors import ConfigError
from tunesmith.train.optimizers.base import Groups
from tunesmith.train.updates.base import PerTensor, adam_direction, move
from tunesmith.train.updates.roles import of_vocabulary

LAYER = re.compile(r"(.+?\.\d+)\.")
"""``model.layers.3.mlp.up_proj.weight`` -> ``model.layers.3``."""


class BAdam(PerTensor):
    """Counts its steps in ``steps`` of every group; which weights are learned follows from that number and the settings alone."""

    def __init__(self, groups: Groups, config: Any) -> None:
        super().__init__(groups, config)
        names = [name for group in self.param_groups for name in group["names"]]
        self.blocks = blocks_of(names, embeddings=config.embeddings)
        if config.mode == "layer" and not self.blocks:
            raise ConfigError(
                "train.optimizer=badam learns one layer after the other, and none of the weights to learn is in a numbered layer",
                hint="set train.optimizer.mode=ratio or train.optimizer.embeddings=true, or take another train.optimizer",
            )
        for group in self.param_groups:
            group["steps"] = 0

    def active_names(self) -> set[str]:
        """The parameters that the next step learns."""
        steps = self.param_groups[0]["steps"]
        if self.config.mode == "layer":
            blocks = list(self.blocks.values())
            return set(blocks[active_block(steps // self.config.switch_every, len(blocks), self.config)])
        every = {name for group in self.param_groups for name in group["names"]}
        return every if self.config.embeddings else {name for name in every if not of_vocabulary(name)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step the active weights; at a switch all moments are dropped first."""
        assert closure is None
        steps, active = self.param_groups[0]["steps"], self.active_names()
        if steps % self.config.switch_every == 0:
            self.state.clear()
        for group in self.param_groups:
            for name, tensor in zip(group["names"], group["params"], strict=True):
                if tensor.grad is not None and name in active:
                    self.update(name, tensor, tensor.grad.float(), self.state[tensor], group)
            group["steps"] = steps + 1

    def update(
        self, name: str, tensor: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """Adam on a tensor, or on its share of entries."""
        if self.config.mode == "layer" or tensor.ndim < 2:
            move(tensor, adam_direction(gradient, state, self.config), group)
            return
        turn = group["steps"] // self.config.switch_every
        seed = random.Random(f"{self.config.seed}/{turn}/{name}").getrandbits(48)
        places = chosen(seed, tensor.numel(), self.config.ratio, self.config.mask, tensor.device)
        part = tensor.view(-1)[places]
        move(part, adam_direction(gradient.reshape(-1)[places], state, self.config), group)
        tensor.view(-1)[places] = part


def blocks_of(names: list[str], *, embeddings: bool) -> dict[str, list[str]]:
    """Names by block, in the model's order: a block per numbered layer; what is in none is one block more if ``embeddings``."""
    blocks: dict[str, list[str]] = {}
    rest: list[str] = []
    for name in names:
        found = LAYER.match(name)
        (blocks.setdefault(found[1], []) if found else rest).append(name)
    numbers = {block: [int(part) for part in block.split(".") if part.isdigit()] for block in blocks}
    ordered = {block: blocks[block] for block in sorted(blocks, key=lambda b: (b.rpartition(".")[0], numbers[b]))}
    return ordered | ({"": rest} if embeddings and rest else {})


def active_block(turn: int, count: int, config: Any) -> int:
    """Which of ``count`` blocks is learned in turn 0, 1, …: a function of the settings alone."""
    if config.order == "random":
        cycle, place = divmod(turn, count)
        order = list(range(count))
        random.Random(f"{config.seed}/{cycle}").shuffle(order)
        return order[place]
    start = config.start if config.start is not None else (count - 1 if config.order == "descending" else 0)
    if start >= count:
        raise ConfigError(
            f"train.optimizer.start is {start}, and there are {count} blocks",
            hint=f"give a number from 0 to {count - 1}, or leave it away",
        )
    return (start + {"ascending": turn, "descending": -turn, "fixed": 0}[config.order]) % count


def chosen(seed: int, size: int, ratio: float, mask: str, device: torch.device) -> slice | torch.Tensor:
    """The entries of a flattened tensor of ``size`` that are learned: a random stretch (``adjacent``), or random places."""
    count = max(1, round(ratio * size))
    if mask == "adjacent":
        start = random.Random(seed).randrange(size - count + 1)
        return slice(start, start + count)
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randperm(size, generator=generator, device=device)[:count]
