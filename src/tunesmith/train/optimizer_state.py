"""The state of any torch optimizer as plain tensors and JSON, by parameter name; nothing is pickled.

``dump`` gives ``tensors`` (for a safetensors file, ``<parameter>|<key>`` -> tensor) and ``record`` (for a JSON file): whose state
it is, the parameters' shapes, every number of the state, and where in the file its tensors are. ``restore`` puts both into an
optimizer that was built anew, so that further steps are bit for bit those of the first one.

Settings are not kept: the config says them, and a run that goes on with another weight decay must get it. Of the parameter groups
only what the optimizer itself has changed is kept (counters, sums).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tunesmith.config.errors import TrainingError
from tunesmith.train.plain_values import Reader, Writer

GIVEN = {"params", "names", "lr", "lr_scale", "weight_decay"}
"""Keys of a group that ``parameter_groups`` and the loop set anew in every process."""
WEIGHTS = "training_weights"
"""The key of the parameter itself, kept where what the checkpoint calls the weights are the evaluation weights."""


def kind_of(optimizer: torch.optim.Optimizer) -> str:
    """What an optimizer's state is called: ``library.Class``, unless it has a name of its own (``state_kind``)."""
    cls = type(optimizer)
    return getattr(optimizer, "state_kind", f"{cls.__module__.partition('.')[0]}.{cls.__name__}")


def dump(
    optimizer: torch.optim.Optimizer, named: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and record. ``named``: the optimizer's parameters by name. Nothing is copied that need not be."""
    names = {parameter: name for name, parameter in named.items()}
    writer = Writer()
    state = {}
    for parameter, values in optimizer.state.items():
        assert parameter in names, "the optimizer has state of something that is no named parameter"
        name = names[parameter]
        state[name] = {key: writer.write(value, f"{name}|{key}") for key, value in values.items()}
    if hasattr(optimizer, "evaluation_weights"):
        for name, parameter in named.items():
            writer.write(parameter.detach(), f"{name}|{WEIGHTS}")
    groups = []
    for i, group in enumerate(optimizer.param_groups):
        progress = {
            key: writer.write(group[key], f"group {i}|{key}") for key in group if _changed(optimizer, group, key)
        }
        groups.append({"names": [names[parameter] for parameter in group["params"]], "progress": progress})
    shapes = {name: list(parameter.shape) for name, parameter in named.items()}
    return writer.tensors, {"kind": kind_of(optimizer), "shapes": shapes, "state": state, "groups": groups}


def _changed(optimizer: torch.optim.Optimizer, group: dict[str, Any], key: str) -> bool:
    """Whether the optimizer has changed this value of its group since it was built."""
    if key in GIVEN:
        return False
    value, first = group[key], optimizer.defaults.get(key)
    if torch.is_tensor(value) or torch.is_tensor(first):
        return True
    return key not in optimizer.defaults or bool(value != first)


def restore(
    optimizer: torch.optim.Optimizer,
    named: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    record: Mapping[str, Any],
) -> None:
    """Bring back what ``dump`` gave; the optimizer keeps ``tensors`` as its own. Each tensor goes to its parameter's device
    in its own type. Raises TrainingError when it is the state of another optimizer or of other parameters, or incomplete."""
    record = _of_first_version(tensors) if "kind" not in record else record
    _check(optimizer, named, record)
    reader = Reader(tensors)
    place_state = getattr(optimizer, "place_state", None)
    group_of = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    for name, values in record["state"].items():
        parameter = named[name]
        state = optimizer.state[parameter] = {}
        for key, written in values.items():
            device = _device(key, parameter, group_of[parameter])
            value = reader.read(written, device)
            state[key] = place_state(parameter, key, value) if place_state and torch.is_tensor(value) else value
    if hasattr(optimizer, "evaluation_weights"):
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(reader.tensor(f"{name}|{WEIGHTS}"))
    before = {name: group["progress"] for group in record["groups"] for name in group["names"]}
    first = {parameter: name for name, parameter in named.items()}
    for group in optimizer.param_groups:
        kept = before.get(first[group["params"][0]], {})
        group.update({key: reader.read(written, torch.device("cpu")) for key, written in kept.items()})


def _device(key: str, parameter: torch.Tensor, group: Mapping[str, Any]) -> torch.device:
    """torch's rule: the count of steps lies on the host, unless the whole step is one kernel on the device."""
    on_host = key == "step" and not (group.get("fused") or group.get("capturable"))
    return torch.device("cpu") if on_host else parameter.device


def _check(optimizer: torch.optim.Optimizer, named: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
    kind = kind_of(optimizer)
    if record["kind"] != kind:
        raise TrainingError(
            f"the checkpoint holds the state of the optimizer {record['kind']}, and this run's is {kind}",
            hint="resume with the train.optimizer that the run began with, or start a new run from these weights",
        )
    shapes = {name: list(parameter.shape) for name, parameter in named.items()}
    known = record["shapes"]
    if shapes == known:
        return
    other = [name for name in {**known, **shapes} if known.get(name) != shapes.get(name)]
    found = [f"{name}: {known.get(name, 'nothing')} there, {shapes.get(name, 'nothing')} here" for name in other[:3]]
    more = f" and {len(other) - 3} more" if len(other) > 3 else ""
    raise TrainingError(
        f"the checkpoint's optimizer learned other parameters than this run's ({'; '.join(found)}{more})",
        hint="resume with the method and the model that the run began with, or start a new run from these weights",
    )


def _of_first_version(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The record of a checkpoint of version 0.1.0, which had AdamW only and kept its tensors alone."""
    state: dict[str, dict[str, Any]] = {}
    shapes: dict[str, list[int]] = {}
    for place, tensor in tensors.items():
        name, _, key = place.rpartition("|")
        state.setdefault(name, {})[key] = {"is": "tensor", "at": place}
        if key == "exp_avg":
            shapes[name] = list(tensor.shape)
    return {"kind": "torch.AdamW", "shapes": shapes, "state": state, "groups": []}
