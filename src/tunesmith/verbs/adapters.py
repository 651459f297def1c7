"""Adapters that a method starts from or merges first: from what a person wrote to folders on this disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.errors import UserError
from tunesmith.config.home import models_folder
from tunesmith.config.plugins import load as load_plugin
from tunesmith.config.progress import Progress
from tunesmith.hub.reference import Reference
from tunesmith.models.adapters.chain import with_needed
from tunesmith.models.adapters.config import AdapterConfig
from tunesmith.verbs.run_config import METHODS


def several_adapters(adapters: Sequence[tuple[Reference, float]], progress: Progress) -> Path:
    """The folder of one LoRA adapter that is the weighted sum of ``adapters``; made once for the same contents and weights.

    Raises UserError for adapters that do not add up.
    """
    from tunesmith.hub.store import make_once
    from tunesmith.models.adapters import combine

    folders = [(adapter_folder(str(one), "adapter", progress), weight) for one, weight in adapters]
    place = models_folder() / "combined" / combine.key_of(folders)

    def make(partial: Path) -> dict[str, str]:
        combine.combine(folders, partial)
        return {"adapters": " + ".join(f"{folder} * {weight!r}" for folder, weight in folders)}

    return make_once(place, make, lambda folder: (folder / "adapter_config.json").is_file(), progress)


def pin_adapters(method: Any, progress: Progress) -> Any:
    """``method`` with absolute folders for ``start_from`` and ``merge_first``, and the settings of an adapter it goes on with.

    Adapters that those were themselves learned on top of stand before them. Raises UserError.
    """
    if not isinstance(method, AdapterConfig):
        return method
    if method.merge_first:
        folders = with_needed([adapter_folder(text, "method.merge_first", progress) for text in method.merge_first])
        method = method.model_copy(update={"merge_first": tuple(map(str, folders))})
    if method.start_from is None:
        return method
    folder = adapter_folder(method.start_from, "method.start_from", progress)
    method = load_plugin(METHODS, method.kind).adopted(method, folder)
    return method.model_copy(update={"start_from": str(folder)})


def adapter_folder(text: str, key: str, progress: Progress) -> Path:
    """The folder of the adapter that ``text`` names: a folder, a hub name or a run's checkpoint. Raises UserError."""
    from tunesmith.hub.resolve import resolve_adapter
    from tunesmith.verbs.targets import reference_of, target_of

    reference = reference_of(text)
    if reference.kind != "run":
        return resolve_adapter(reference, progress).path.absolute()
    adapter = target_of(text, progress).learned
    if adapter is None or not (adapter / "adapter_config.json").is_file():
        raise UserError(
            f"{key}: {text} is no adapter", hint="name a checkpoint of a run with method lora or oft: run:ID@step-N"
        )
    return adapter.absolute()
