"""fp32 masters of the trainable parameters: the model computes in its own numbers, the optimizer learns in fp32.

With bf16 weights an update smaller than 1/256 of a weight would be rounded away. Each trainable parameter therefore has
an fp32 master; gradients are added up in fp32, the optimizer steps the masters, and the parameters are their rounding.
In an fp32 run master and parameter are one tensor and nothing is copied. In a pure run they are one tensor as well, in
16 bits, and ``train.rounding`` steps it. In fp16 the loss is scaled on its way to the gradients (``train.scaler``).
"""

from __future__ import annotations

from typing import Any

import torch

from tunesmith.train.scaler import LossScaler


class Masters:
    """The trainable parameters of ``model`` by name, created in fp32; ``dtype`` is what they compute in.

    ``pure``: no fp32 copies, the parameters themselves are learned in ``dtype``.
    """

    def __init__(self, model: Any, dtype: torch.dtype, *, pure: bool = False) -> None:
        self.pairs: dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]] = {}
        self.scaler = LossScaler() if dtype == torch.float16 else None
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if pure or (dtype == torch.float32 and parameter.dtype == torch.float32):
                parameter.data = parameter.data.to(dtype)
                self.pairs[name] = (parameter, parameter)
                continue
            master = torch.nn.Parameter(parameter.detach().to(torch.float32, copy=True))
            parameter.data = parameter.data.to(dtype)
            self.pairs[name] = (parameter, master)

    def parameters(self) -> list[torch.nn.Parameter]:
        """The masters, in the order of the model."""
        return [master for _, master in self.pairs.values()]

    def named(self) -> dict[str, torch.nn.Parameter]:
        """The masters by parameter name."""
        return {name: master for name, (_, master) in self.pairs.items()}

    def state(self) -> dict[str, torch.Tensor]:
        """Values by parameter name: fp32, in a pure run the parameters' own."""
        return {name: master.detach() for name, (_, master) in self.pairs.items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Set the masters, and the parameters to their rounding. Names and shapes must be the model's."""
        assert state.keys() == self.pairs.keys(), "the checkpoint's parameters are not this model's"
        with torch.no_grad():
            for name, (_, master) in self.pairs.items():
                master.copy_(state[name])
        self.publish()

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """``loss`` as it is to be differentiated: in fp16 multiplied by the scale that ``collect`` takes out again."""
        return loss if self.scaler is None else loss * self.scaler.scale

    def collect(self) -> None:
        """Add the parameters' gradients to the masters' in fp32, unscaled, and free them. Call after each backward pass."""
        unscale = 1.0 if self.scaler is None else 1.0 / self.scaler.scale
        for parameter, master in self.pairs.values():
            if parameter is master or parameter.grad is None:
                continue
            gradient = parameter.grad.float()
            if unscale != 1.0:
                gradient.mul_(unscale)
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    def forget_gradients(self) -> None:
        """Free what a backward pass left, finished or not."""
        for parameter, master in self.pairs.values():
            parameter.grad = master.grad = None

    def publish(self) -> None:
        """Round the masters into the parameters. Call after each optimizer step."""
        with torch.no_grad():
            for parameter, master in self.pairs.values():
                if parameter is not master:
                    parameter.copy_(master)
