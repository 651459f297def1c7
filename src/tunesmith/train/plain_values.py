"""Any value that an optimizer keeps, as JSON and named tensors, and back: exactly, and without pickle.

JSON has no tuples, no tensors and no keys but texts, so these are written as ``{"is": …}``. Floats survive JSON exactly (Python writes the shortest
text that reads back as the same number). A tensor subclass (torchao's quantized states) is written as the plain tensors
that it is made of, by torch's own protocol (``__tensor_flatten__``).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch

from tunesmith.config.errors import TrainingError

SUBCLASSES_FROM = {"torchao"}
"""Libraries whose tensor subclasses are made again by name: a checkpoint from elsewhere must not choose what is imported."""


class Writer:
    """Turns values into JSON; the tensors among them gather in ``tensors``."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._known: dict[tuple[Any, ...], str] = {}

    def write(self, value: Any, place: str) -> Any:
        """``value`` as JSON. ``place``: the name for its tensor."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, torch.Tensor):
            return self._tensor(value, place) if type(value) in _PLAIN else self._subclass(value, place)
        if isinstance(value, torch.dtype):
            return {"is": "dtype", "name": str(value).removeprefix("torch.")}
        if isinstance(value, list | tuple):
            of = [self.write(inner, f"{place}.{i}") for i, inner in enumerate(value)]
            return (
                of
                if isinstance(value, list)
                else {"is": "size" if isinstance(value, torch.Size) else "tuple", "of": of}
            )
        if isinstance(value, dict):
            return {"is": "dict", "of": [[key, self.write(inner, f"{place}.{key}")] for key, inner in value.items()]}
        raise AssertionError(
            f"an optimizer keeps {place} as {type(value).__name__}, which is neither number nor tensor"
        )

    def _tensor(self, value: torch.Tensor, place: str) -> dict[str, Any]:
        """A tensor that several parameters share is written once, and shared again when it is read."""
        key = (value.data_ptr(), value.device, value.dtype, value.shape, value.stride())
        if value.numel() and key in self._known:
            return {"is": "tensor", "at": self._known[key]}
        whole = value.numel() * value.element_size() == value.untyped_storage().nbytes()
        self.tensors[place] = value.detach().contiguous() if whole else value.detach().clone().contiguous()
        self._known[key] = place
        return {"is": "tensor", "at": place}

    def _subclass(self, value: torch.Tensor, place: str) -> dict[str, Any]:
        cls = type(value)
        assert cls.__module__.partition(".")[0] in SUBCLASSES_FROM, f"{place} is a {cls.__module__}.{cls.__name__}"
        inner, context = value.__tensor_flatten__()  # type: ignore[attr-defined]
        return {
            "is": "subclass",
            "module": cls.__module__,
            "class": cls.__name__,
            "inner": {name: self.write(getattr(value, name), f"{place}.{name}") for name in inner},
            "context": self.write(context, place),
            "shape": list(value.shape),
            "stride": list(value.stride()),
        }


_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Reader:
    """Reads what ``Writer`` wrote. ``tensors``: those of the file."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def read(self, written: Any, device: torch.device) -> Any:
        """The value, its tensors on ``device``. Raises TrainingError when a tensor is not in the file."""
        if isinstance(written, list):
            return [self.read(inner, device) for inner in written]
        if not isinstance(written, dict):
            return written
        match written["is"]:
            case "tensor":
                return self.tensor(written["at"]).to(device)
            case "dtype":
                return getattr(torch, written["name"])
            case "tuple":
                return tuple(self.read(inner, device) for inner in written["of"])
            case "size":
                return torch.Size(written["of"])
            case "dict":
                return {key: self.read(inner, device) for key, inner in written["of"]}
            case "subclass":
                return self._subclass(written, device)
        raise TrainingError(f"the optimizer's state holds a value of the unknown kind {written['is']!r}", hint=_DAMAGED)

    def tensor(self, place: str) -> torch.Tensor:
        """One tensor of the file."""
        if place not in self.tensors:
            raise TrainingError(f"the optimizer's state has no tensor {place!r}", hint=_DAMAGED)
        return self.tensors[place]

    def _subclass(self, written: Mapping[str, Any], device: torch.device) -> torch.Tensor:
        if written["module"].partition(".")[0] not in SUBCLASSES_FROM:
            raise TrainingError(f"the optimizer's state names the foreign class {written['module']}", hint=_DAMAGED)
        cls: Any = getattr(importlib.import_module(written["module"]), written["class"])
        inner = {name: self.read(part, device) for name, part in written["inner"].items()}
        context = self.read(written["context"], device)
        made: torch.Tensor = cls.__tensor_unflatten__(inner, context, torch.Size(written["shape"]), written["stride"])
        return made


_DAMAGED = "the checkpoint is damaged, or of a newer Tunesmith: resume from another one"
