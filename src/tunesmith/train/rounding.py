"""Learning in bf16 alone: weights and optimizer states of 2 bytes each, rounded stochastically (Zamirai et al., 2020,
"Revisiting BFloat16 Training", arXiv:2010.06192).

bf16 keeps 8 bits of a number, so that rounding to the nearest loses every change below 1/512 of a weight: learning stalls.
Stochastic rounding goes up with the probability of the fraction that is cut off, and is right on average:

    E[round(x)] = x        round(x) = up(x) with probability (x - down(x)) / (up(x) - down(x)), else down(x)

Any optimizer that treats each tensor by itself is stepped in fp32 on copies of one tensor at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from tunesmith.config.errors import ConfigError
from tunesmith.train.optimizers.base import Groups

CHUNK = 1 << 24
"""Elements that are rounded at once: bounds the memory of the random numbers."""


def stochastic_round(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """fp32 ``value`` in bf16. What is a bf16 number already, and what is not finite, stays as it is."""
    result = torch.empty_like(value, dtype=torch.bfloat16)
    flat, out = value.contiguous().view(-1), result.view(-1)
    for start in range(0, flat.numel(), CHUNK):
        piece = flat[start : start + CHUNK]
        # The upper 16 bits of an fp32 number are its bf16 number rounded towards zero: a carry from the lower 16, to which
        # a uniform number is added, makes it the next one away from zero.
        noise = torch.randint(0, 1 << 16, piece.shape, dtype=torch.int32, device=piece.device, generator=generator)
        carried = (piece.view(torch.int32) + noise).bitwise_and_(-(1 << 16)).view(torch.float32)
        out[start : start + CHUNK] = torch.where(piece.isfinite(), carried, piece)
    return result


class StochasticallyRounded(torch.optim.Optimizer):
    """Steps bf16 parameters with the optimizers that ``build`` makes; all state is in ``state`` and ``param_groups``.

    A tensor's random numbers depend on ``seed``, on the number of steps taken (``rounded_steps`` in every group) and on its
    place alone, so that a resumed run draws the same. Gradients of several micro-batches are added up in the same manner.
    """

    def __init__(self, groups: Groups, build: Callable[[Groups], torch.optim.Optimizer], seed: int) -> None:
        inner = build(groups)
        if hasattr(inner, "eval") or hasattr(inner, "evaluation_weights"):
            raise _refused(inner, "swaps its weights for each evaluation, which bf16 cannot undo")
        if hasattr(inner, "active_names"):
            raise _refused(inner, "looks at all tensors together, and pure_bf16 steps one at a time")
        self.build, self._seed = build, seed
        super().__init__(inner.param_groups, dict(inner.defaults))
        cls = type(inner)
        kind = getattr(inner, "state_kind", f"{cls.__module__.partition('.')[0]}.{cls.__name__}")
        self.state_kind = f"{kind} in bf16"
        if hasattr(inner, "place_state"):
            self.place_state = inner.place_state
        self._generators: dict[torch.device, torch.Generator] = {}
        self._added: dict[int, int] = {}
        self._moved: dict[int, dict[str, Any]] = {}
        self._places: dict[
            int, tuple[dict[str, Any], int, int]
        ] = {}  # parameter -> group, position there, place of all
        for group in self.param_groups:
            group["rounded_steps"] = 0
            for position, parameter in enumerate(group["params"]):
                assert parameter.dtype == torch.bfloat16
                place = len(self._places)
                self._places[id(parameter)] = (group, position, place)
                parameter.register_hook(partial(self._add_up, place, group, parameter))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step, one tensor at a time: fp32 copies of it, its gradient and its state live while it is stepped."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.step_tensor(parameter)
        self.finish_step()

    @torch.no_grad()
    def step_tensor(self, parameter: torch.nn.Parameter) -> None:
        """Step one parameter alone; ``finish_step`` ends the step when all have been."""
        group, position, place = self._places[id(parameter)]
        before = {key: value for key, value in group.items() if key != "params"}
        self._moved[id(group)] = self._step_one(parameter, before, position, place)

    def finish_step(self) -> None:
        """Count the step. What the optimizer counts per group moved once for every tensor, each time from the same beginning."""
        for group in self.param_groups:
            after = self._moved.get(id(group), {})
            group.update({key: value for key, value in after.items() if key not in ("params", "names")})
            group["rounded_steps"] += 1
        self._moved.clear()
        self._added.clear()

    def _step_one(
        self, parameter: torch.nn.Parameter, group: Mapping[str, Any], position: int, place: int
    ) -> dict[str, Any]:
        """Step one parameter; returns its group as the optimizer left it."""
        wide = torch.nn.Parameter(parameter.detach().float())
        alone = dict(group) | {"params": [wide]}
        if "names" in group:
            alone["names"] = [group["names"][position]]
        inner = self.build([dict(alone)])
        inner.param_groups[0].update({key: value for key, value in alone.items() if key != "params"})
        inner.state[wide] = {key: _widened(value) for key, value in self.state.get(parameter, {}).items()}
        assert parameter.grad is not None
        wide.grad = parameter.grad.float()
        inner.step()
        random = self._generator(parameter.device, group, place, "step")
        parameter.copy_(stochastic_round(wide.detach(), random))
        self.state[parameter] = {
            key: stochastic_round(value, random) if _as_large(value, parameter) else value
            for key, value in inner.state[wide].items()
        }
        return inner.param_groups[0]

    def _add_up(
        self, place: int, group: Mapping[str, Any], parameter: torch.nn.Parameter, gradient: torch.Tensor
    ) -> torch.Tensor:
        """Called by the backward pass before it adds ``gradient`` to the parameter's; takes that addition over."""
        if parameter.grad is None:
            return gradient
        self._added[place] = self._added.get(place, 0) + 1
        random = self._generator(parameter.device, group, place, f"gradient {self._added[place]}")
        total = parameter.grad.float() + gradient.float()
        parameter.grad = None
        return stochastic_round(total, random)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's."""
        self._added.clear()
        super().zero_grad(set_to_none)

    def _generator(self, device: torch.device, group: Mapping[str, Any], place: int, purpose: str) -> torch.Generator:
        generator = self._generators.setdefault(device, torch.Generator(device))
        digest = hashlib.blake2b(f"{self._seed}/{group['rounded_steps']}/{place}/{purpose}".encode(), digest_size=7)
        generator.manual_seed(int.from_bytes(digest.digest()))
        return generator


def _refused(optimizer: torch.optim.Optimizer, why: str) -> ConfigError:
    return ConfigError(
        f"precision=pure_bf16: {type(optimizer).__name__} {why}", hint="use another train.optimizer, or precision=bf16"
    )


def _widened(value: Any) -> Any:
    return value.float() if torch.is_tensor(value) and value.dtype == torch.bfloat16 else value


def _as_large(value: Any, parameter: torch.Tensor) -> bool:
    """A state with one number for each of the parameter's is kept in bf16; counters and factors stay as they are."""
    return torch.is_tensor(value) and value.dtype == torch.float32 and value.shape == parameter.shape and value.ndim > 0
