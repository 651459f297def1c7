"""Weights learned in full (all of a model, or some of it) in place of their base's, as tensors to write one after the other.

The result has the base's names, and its number types unless others are asked for: learned values are rounded once from the numbers they
were learned in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import ExportError
from tunesmith.export.changes import as_it_is, bytes_of, converted, loaded
from tunesmith.export.changes import rounded as rounded_to
from tunesmith.export.model_config import model_class
from tunesmith.export.numbers import FLOATS, Numbers
from tunesmith.export.tensor_files import PlannedTensor, StoredTensor, damaged, read_model
from tunesmith.models.trained import DESCRIPTION, STEM, Form, read_form

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Learned:
    """One learned tensor under the base's kind of name. ``rounded(dtype)``: its bytes in that type, in pieces."""

    dtype: str
    shape: tuple[int, ...]
    rounded: Callable[[str], Iterable[bytes | memoryview]]


@dataclass(frozen=True)
class Trained:
    """``form`` is None for a complete model, whose base the caller knows."""

    folder: Path
    tensors: dict[str, StoredTensor]
    form: Form | None


def is_part(folder: Path) -> bool:
    """Whether ``folder`` holds some learned weights, without the model they belong to."""
    return (folder / DESCRIPTION).is_file()


def read_trained(folder: Path) -> Trained:
    """The learned weights in ``folder``: those of a part, else of a complete model. Raises UserError."""
    part = is_part(folder)
    if not part and not (folder / "config.json").exists():
        raise ExportError(
            f"{folder} is not whole: it has neither adapter_config.json nor trained_weights.json nor config.json",
            hint=damaged(folder / "config.json"),
        )
    return Trained(folder, read_model(folder, STEM if part else "model"), read_form(folder) if part else None)


def plan(
    stored: Mapping[str, StoredTensor],
    trained: Trained,
    tied: Mapping[str, str],
    config: Any,
    numbers: Numbers | None = None,
) -> list[PlannedTensor]:
    """What to write: the base's tensors in their order, those that were learned replaced, new layers in their places.

    ``config``: transformers' config of the learned model. Tied weights are learned together and written once. Raises ExportError
    when base and weights do not belong together. ``numbers``: the types to write.
    """
    numbers = numbers or Numbers()
    expected = dict(_grown(stored, trained.form))
    for output, shared in tied.items():
        if shared in expected:
            expected.pop(output, None)
    found = _by_base_names(trained, expected.keys(), config)
    unknown = sorted(found.keys() - expected.keys())
    if unknown:
        raise _wrong(trained, f"{unknown[0]} was learned, but the base has no such weight")
    tensors = []
    for name, (old, copied) in expected.items():
        if name in found:
            vocabulary = int(config.get_text_config().vocab_size)
            tensors.append(_replacement(trained, name, old, found[name], vocabulary, numbers))
        elif copied:
            raise _wrong(trained, f"{name} of a new layer is missing")
        else:
            tensors.append(as_it_is(old, name, numbers.of(old.dtype)))
    return tensors


def _grown(stored: Mapping[str, StoredTensor], form: Form | None) -> Iterator[tuple[str, tuple[StoredTensor, bool]]]:
    """Name in the learned model -> the base's tensor of its layer, and whether the layer is a new one."""
    growth = form.growth if form is not None else None
    if growth is None:
        yield from ((name, (tensor, False)) for name, tensor in stored.items())
        return
    before, after = f"{growth.blocks}.", re.compile(r"(\d+)\.(.+)")
    layers: dict[int, list[tuple[str, StoredTensor]]] = {}
    for name, tensor in stored.items():
        match = after.fullmatch(name.removeprefix(before)) if name.startswith(before) else None
        if match is None:
            yield name, (tensor, False)
        else:
            layers.setdefault(int(match[1]), []).append((match[2], tensor))
    for place, origin in enumerate(growth.origins):
        for rest, tensor in layers.get(origin, ()):
            yield f"{before}{place}.{rest}", (tensor, place in growth.new)


def _by_base_names(trained: Trained, known: Iterable[str], config: Any) -> dict[str, Learned]:
    """The learned tensors under the names of published folders.

    transformers joins the experts of a layer into one tensor and renames a few others when it opens a model; where the base has other
    names than the model, its own rules are followed backwards, layer by layer.
    """
    names = set(known)
    found = {}
    others: dict[str, list[StoredTensor]] = {}
    for name, tensor in trained.tensors.items():
        if name in names:
            found[name] = Learned(tensor.dtype, tensor.shape, lambda dtype, t=tensor: _rounded(t, dtype))  # type: ignore[misc]
        else:
            layer = re.match(r".*?\.\d+\.", name)
            others.setdefault(layer[0] if layer else name, []).append(tensor)
    if others:
        import torch

        with torch.device("meta"):
            model = model_class(config)(config)
        at_hand: dict[str, torch.Tensor] = {}
        for group in others.values():
            found |= _converted_group(group, model, at_hand)
    return found


def _converted_group(group: list[StoredTensor], model: Any, at_hand: dict[str, torch.Tensor]) -> dict[str, Learned]:
    """``at_hand``: the tensors of the group that was read last; one layer at a time is in memory."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    def rounded(name: str, dtype: str) -> Iterator[memoryview]:
        if name not in at_hand:
            at_hand.clear()
            at_hand.update(revert_weight_conversion(model, {t.name: loaded(t) for t in group}))
        wanted = getattr(torch, FLOATS[dtype])
        yield bytes_of(rounded_to(at_hand[name], wanted, name))

    forms = {t.name: torch.empty(t.shape, dtype=getattr(torch, FLOATS[t.dtype]), device="meta") for t in group}
    return {
        name: Learned(group[0].dtype, tuple(form.shape), lambda dtype, n=name: rounded(n, dtype))  # type: ignore[misc]
        for name, form in revert_weight_conversion(model, forms).items()
    }


def _rounded(tensor: StoredTensor, dtype: str) -> Iterable[bytes | memoryview]:
    return tensor.chunks() if dtype == tensor.dtype else converted(tensor, dtype)


def _replacement(
    trained: Trained, name: str, old: StoredTensor, new: Learned, vocabulary: int, numbers: Numbers
) -> PlannedTensor:
    longer = new.shape[1:] == old.shape[1:] and new.shape[0] == vocabulary > old.shape[0]
    if new.shape != old.shape and not longer:
        raise _wrong(
            trained, f"{name} is {list(old.shape)} in the base and {list(new.shape)} among the learned weights"
        )
    dtype = numbers.of(old.dtype, new.dtype)
    return PlannedTensor(name, dtype, new.shape, lambda: new.rounded(dtype), numbers.serves(old.served))


def _wrong(trained: Trained, what: str) -> ExportError:
    base = trained.form.base if trained.form is not None else "the base of its run"
    return ExportError(
        f"{trained.folder}: {what}", hint=f"weights and base do not belong together; they were learned on {base}"
    )
