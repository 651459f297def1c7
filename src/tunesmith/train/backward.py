"""The optimizer's step within the backward pass: a tensor moves as soon as its gradient is there, and the gradient is freed.

So the gradients of a model never live together (Lv et al., 2023, arXiv:2306.09782). What this costs:

- A step is one forward and backward pass over all of its rows: nothing can be added up over several.
- The norm of the whole gradient is known only at the end. In one pass ``train.clip`` therefore bounds the norm of each tensor's
  gradient; in two passes (LOMO's way) the first one only measures, and the second one clips by the global norm.
- A gradient that is not finite is found before its own tensor moves, but in one pass the tensors that came before it have
  moved already: the run stops and goes on from its last checkpoint. In two passes nothing has moved.

Works with every optimizer whose file says ``PER_TENSOR = True``. State and checkpoints are those of the ordinary step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tunesmith.config.errors import TrainingError, UserError
from tunesmith.stages.base import Item, Loss
from tunesmith.train.guards import non_finite
from tunesmith.train.masters import Masters
from tunesmith.train.setup import Setup


def optimizer_step(setup: Setup, rows: Sequence[Item], rate: float, step: int) -> tuple[Loss, torch.Tensor]:
    """The step over ``rows`` within the backward pass: the loss, off the graph, and the norm of the gradient before clipping.

    Raises TrainingError for what is not finite, and when the rows do not fit into one pass.
    """
    config, optimizer = setup.config, setup.optimizer
    _fits(rows, config.micro_tokens, step, packed=config.packing)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
    weight = sum(row.weight for row in rows)
    try:
        loss = setup.stage.loss(setup.model, setup.stage.collate(rows, packed=config.packing))
        value = float(loss.total.detach())
        if not math.isfinite(value):
            raise non_finite(value, step, rate, rows, dtype=setup.dtype)
        mean = loss.total / weight
        whole = None
        if config.update_in_backward == "two_passes":
            whole = measure(mean, setup.masters)
            if not math.isfinite(whole):
                raise non_finite(float(whole), step, rate, rows, what="gradient norm", dtype=setup.dtype)
        norm = backward_and_step(mean, setup.masters, optimizer, config.clip or math.inf, whole)
    except NonFiniteGradientError as error:
        raise _stopped(error, non_finite(error.norm, step, rate, rows, what=f"gradient norm of {error.name}")) from None
    except torch.OutOfMemoryError as error:
        raise _too_large(rows, step, "the memory of the device") from error
    return Loss(loss.total.detach(), weight, loss.metrics), norm


class NonFiniteGradientError(UserError):
    """The gradient of the parameter ``name`` is not finite; ``moved`` others had been stepped before it was found."""

    def __init__(self, name: str, norm: float, moved: int) -> None:
        super().__init__(f"the gradient norm of {name} became {norm}")
        self.name, self.norm, self.moved = name, norm, moved


def measure(loss: torch.Tensor, masters: Masters) -> torch.Tensor:
    """Global norm of the gradient of ``loss`` (a scalar tensor). Gradients live one by one; the graph is kept for another pass."""
    norms: dict[str, torch.Tensor] = {}

    def look(name: str, gradient: torch.Tensor) -> None:
        norms[name] = torch.linalg.vector_norm(gradient, dtype=torch.float32)

    with _as_they_come(masters, look):
        loss.backward(retain_graph=True)
    return _whole(norms, masters)


def backward_and_step(
    loss: torch.Tensor,
    masters: Masters,
    optimizer: torch.optim.Optimizer,
    clip: float,
    whole: torch.Tensor | None = None,
) -> torch.Tensor:
    """Differentiate ``loss`` and step each tensor when its gradient is there; returns the norm of all gradients before clipping.

    Gradients are clipped by ``whole`` (their global norm) where it is given, else each by its own norm. Raises
    NonFiniteGradientError.
    """
    place = {
        id(master): (group, name)
        for group in optimizer.param_groups
        for name, master in zip(group["names"], group["params"], strict=True)
    }
    norms: dict[str, torch.Tensor] = {}

    def move(name: str, gradient: torch.Tensor) -> None:
        parameter, master = masters.pairs[name]
        master.grad = gradient
        norm = torch.linalg.vector_norm(gradient, dtype=torch.float32)
        if not torch.isfinite(norm):
            master.grad = None
            raise NonFiniteGradientError(name, float(norm), len(norms))
        norms[name] = norm
        torch.nn.utils.clip_grads_with_norm_(master, clip, norm if whole is None else whole)
        _step_alone(optimizer, *place[id(master)], master)
        master.grad = None
        if parameter is not master:
            with torch.no_grad():
                parameter.copy_(master)

    with _as_they_come(masters, move):
        loss.backward()
    finish = getattr(optimizer, "finish_step", None)
    if finish is not None:
        finish()
    return _whole(norms, masters)


@contextmanager
def _as_they_come(masters: Masters, visit: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Within: ``visit(name, gradient in its master's numbers)`` for each parameter as soon as all of its gradient is there, which is then freed.

    A weight that is used in several places (tied embeddings) is visited once, when all of them have been differentiated.
    """

    def hook(name: str) -> Callable[[torch.Tensor], None]:
        def ready(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            gradient = parameter.grad.to(masters.pairs[name][1].dtype)
            parameter.grad = None
            visit(name, gradient)

        return ready

    handles = [
        parameter.register_post_accumulate_grad_hook(hook(name))
        for name, (parameter, _) in masters.pairs.items()
        if parameter.requires_grad
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _step_alone(optimizer: torch.optim.Optimizer, group: dict[str, Any], name: str, master: torch.nn.Parameter) -> None:
    """One step of one tensor: for its duration the optimizer knows no other, so that it looks at no other."""
    alone = getattr(optimizer, "step_tensor", None)
    if alone is not None:
        alone(master)
        return
    groups = optimizer.param_groups
    optimizer.param_groups = [{**group, "params": [master], "names": [name]}]
    try:
        optimizer.step()
    finally:
        optimizer.param_groups = groups


def _whole(norms: dict[str, torch.Tensor], masters: Masters) -> torch.Tensor:
    """The norm of all gradients from the norms of each, in the order of the model."""
    return torch.linalg.vector_norm(torch.stack([norms[name] for name in masters.pairs if name in norms]))


def _fits(rows: Sequence[Item], most: int | None, step: int, *, packed: bool) -> None:
    lengths = [row.length for row in rows]
    tokens = sum(lengths) if packed else max(lengths) * len(lengths)
    if most is not None and tokens > most:
        raise _too_large(rows, step, f"train.micro_tokens={most}")


def _too_large(rows: Sequence[Item], step: int, what: str) -> TrainingError:
    tokens = sum(row.length for row in rows)
    return TrainingError(
        f"the {len(rows)} rows of step {step} hold {tokens} tokens, too many for {what} in one pass",
        hint="an update in the backward pass needs the whole step at once: take a smaller train.batch or data.max_length, "
        "train.gradient_checkpointing=true, a larger train.micro_tokens, or train.update_in_backward=false",
    )


def _stopped(found: NonFiniteGradientError, error: TrainingError) -> TrainingError:
    """``error`` with what is lost."""
    return TrainingError(
        f"{error.message} ({found.moved} other tensors had been moved by then)",
        hint=f"resume from the last checkpoint, which is whole; {error.hint}",
    )
