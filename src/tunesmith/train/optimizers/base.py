"""The protocol of an optimizer: one file each, with a ``Config`` (with ``kind``) and ``build``.

    build(groups, config) -> torch.optim.Optimizer

``groups``: torch parameter groups. Besides ``params`` each has ``names`` (the parameter's name in the model, one for each),
``lr_scale`` (the loop sets ``lr = rate * lr_scale`` before every step) and ``weight_decay``. Everything that the next
step depends on lies in ``optimizer.state`` and ``optimizer.param_groups``: ``train.optimizer_state`` keeps it without pickle.

What a file may have besides:

- ``REQUIRES = (package, extra)``: the optional library it stands on; ``check_installed`` says what to install.
- ``Config.SCHEDULE``: the only kind of schedule that makes sense with it; taken when the person names none.

What an optimizer may have besides:

- ``evaluation_weights()``: a context manager; within it the parameters hold the weights that are evaluated and saved, and
  after it, bit for bit, those that are trained. For optimizers that evaluate at another point than they train at.
- ``place_state(parameter, key, value)``: where a restored tensor of the state lies, if not beside its parameter.
- ``state_kind``: what its state is called in checkpoints, if not ``library.Class``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import UserError

if TYPE_CHECKING:
    import torch

    from tunesmith.train.masters import Masters

Groups = list[dict[str, Any]]


def parameter_groups(
    tensors: Mapping[str, torch.nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    lr_scales: Mapping[str, float] | None = None,
) -> Groups:
    """``tensors`` by name -> groups; vectors (norms, biases) are not decayed. ``lr_scales``: name -> factor, 1 unless given."""
    found: dict[tuple[float, float], dict[str, Any]] = {}
    for name, tensor in tensors.items():
        decay = weight_decay if tensor.ndim >= 2 else 0.0
        scale = (lr_scales or {}).get(name, 1.0)
        group = found.setdefault(
            (scale, decay), {"params": [], "names": [], "lr": lr * scale, "lr_scale": scale, "weight_decay": decay}
        )
        group["params"].append(tensor)
        group["names"].append(name)
    return list(found.values())


def one_kernel(groups: Groups) -> bool:
    """Whether torch has its fused AdamW and SGD (the whole step one kernel, 4 times as fast on a CPU) for these parameters."""
    return all(
        p.device.type in ("cpu", "cuda", "mps", "xpu") and p.is_floating_point() for g in groups for p in g["params"]
    )


def on_cpu(groups: Groups) -> bool:
    """Whether all parameters lie in the computer's memory."""
    return all(parameter.device.type == "cpu" for group in groups for parameter in group["params"])


def check_installed(plugin: ModuleType) -> None:
    """Raises UserError when the library that an optimizer's file stands on (``REQUIRES``) is not installed."""
    needs(plugin.__name__.rpartition(".")[2], getattr(plugin, "REQUIRES", None))


def needs(kind: str, requires: tuple[str, str] | None) -> None:
    """``check_installed`` by the optimizer's kind and its (package, extra of ours)."""
    if requires is None or importlib.util.find_spec(requires[0]) is not None:
        return
    package, extra = requires
    raise UserError(
        f"train.optimizer={kind} needs the package {package}, which is not installed",
        hint=f"pip install 'tunesmith[{extra}]', or choose another train.optimizer",
    )


@contextmanager
def evaluation_weights(optimizer: torch.optim.Optimizer, masters: Masters) -> Iterator[None]:
    """Within: the model holds the weights to evaluate and save; afterwards those to train, bit for bit as before."""
    own = getattr(optimizer, "evaluation_weights", None)
    if own is None:
        yield
        return
    try:
        with own():
            masters.publish()
            yield
    finally:
        masters.publish()
