"""fp32 masters of the trainable parameters: the model computes in its own numbers, the optimizer learns in fp32.

With bf16 weights an update smaller than 1/256 of a weight would be rounded away. Each trainable parameter therefore has
an fp32 master; gradients are added up in fp32, the optimizer steps the masters, and the parameters are their rounding.
In an fp32 run master and parameter are one tensor and nothing is copied.
"""

from __future__ import annotations

from typing import Any

import torch


class Masters:
    """The trainable parameters of ``model`` by name, created in fp32; ``dtype`` is what they compute in."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self.pairs: dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if dtype == torch.float32 and parameter.dtype == torch.float32:
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
        """fp32 values by parameter name."""
        return {name: master.detach() for name, (_, master) in self.pairs.items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Set the masters, and the parameters to their rounding. Names and shapes must be the model's."""
        assert state.keys() == self.pairs.keys(), "the checkpoint's parameters are not this model's"
        with torch.no_grad():
            for name, (_, master) in self.pairs.items():
                master.copy_(state[name])
        self.publish()

    def collect(self) -> None:
        """Add the parameters' gradients to the masters' in fp32 and free them. Call after each backward pass."""
        for parameter, master in self.pairs.values():
            if parameter is master or parameter.grad is None:
                continue
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    def publish(self) -> None:
        """Round the masters into the parameters. Call after each optimizer step."""
        with torch.no_grad():
            for parameter, master in self.pairs.values():
                if parameter is not master:
                    parameter.copy_(master)
