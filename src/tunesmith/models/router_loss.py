"""The router's loss of mixture-of-experts models: it keeps the experts evenly used (Fedus et al., 2021, arXiv:2101.03961, eq. 4).

loss = E * sum over experts e of f_e * P_e, with f_e the share of tokens sent to expert e and P_e its mean probability, over the tokens of
a micro-batch without padding, all layers together. The model's own code computes it; here it joins the loss of whatever stage is
trained, multiplied by a coefficient.

Scale: what is minimized is stage loss + coefficient * mean of the micro-batches' router losses, weighted like the stage's own loss. The sum of 8
micro-batches is therefore as large as that of one, but not the same number: f_e * P_e is no sum over tokens, so the even use is asked of each
micro-batch. In evaluation it is left out, so that perplexities stay perplexities.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

SWITCH, COEFFICIENT = "output_router_logits", "router_aux_loss_coef"
"""How transformers' configs spell them."""


def has_router_loss(model: Any) -> bool:
    """Whether the model's code computes a router loss."""
    return hasattr(model.config.get_text_config(), SWITCH) and hasattr(model.config.get_text_config(), COEFFICIENT)


def with_router_loss(stage: Any, model: Any, coefficient: float | None) -> Any:
    """``stage`` with the router loss in its training loss and ``router_loss`` among its metrics.

    ``coefficient`` None: the one in the model's config. Models without a router loss, and a coefficient of 0, leave the stage as it is.
    """
    if not has_router_loss(model):
        return stage
    coefficient = getattr(model.config.get_text_config(), COEFFICIENT) if coefficient is None else coefficient
    return RouterLoss(stage, model, float(coefficient)) if coefficient else stage


class RouterLoss:
    """A stage (``stages.base.Stage``) that also minimizes the router loss of ``model``."""

    def __init__(self, stage: Any, model: Any, coefficient: float) -> None:
        self.stage, self.coefficient = stage, coefficient
        self._found: list[Any] = []
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        inner.register_forward_pre_hook(self._ask, with_kwargs=True)
        inner.register_forward_hook(self._keep)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stage, name)

    def loss(self, model: Any, batch: Any) -> Any:
        """The stage's loss plus, in training, coefficient * router loss * weight: the loop divides by the step's weight."""
        self._found.clear()
        loss = self.stage.loss(model, batch)
        if not self._found:
            return loss
        router = sum(self._found) / len(self._found)
        self._found.clear()
        metrics = {**loss.metrics, "router_loss": (router.detach() * loss.weight, loss.weight)}
        total = loss.total + self.coefficient * loss.weight * router.to(loss.total)
        return dataclasses.replace(loss, total=total, metrics=metrics)

    def _ask(self, module: Any, arguments: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, ({**kwargs, SWITCH: True} if module.training else kwargs)

    def _keep(self, module: Any, arguments: tuple[Any, ...], output: Any) -> None:
        if module.training and isinstance(getattr(output, "aux_loss", None), torch.Tensor):  # 0 where it computes none
            self._found.append(output.aux_loss)
