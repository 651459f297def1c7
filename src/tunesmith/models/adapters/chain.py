"""Adapters on disk and the base they belong to: does one fit, which must be merged first, put it on, merge it in.

A run that merged other adapters into its base first writes them into ``adapters.json`` beside its own::

    {"merge_first": [{"path": "/runs/a/checkpoints/step-9", "sha256": "…of adapter_model.safetensors"}]}

They are listed in order and in full: what those adapters needed themselves stands before them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ConfigError, UserError
from tunesmith.config.files import write_json

NEEDED = "adapters.json"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's own config. Raises UserError when it is not there or cannot be read."""
    import json

    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: {CONFIG} cannot be read: {error}", hint="is this an adapter's folder?") from error
    if not isinstance(found, dict):
        raise UserError(f"{folder}: {CONFIG} holds no settings", hint="the file is damaged; save the adapter again")
    return found


def merged_first(folder: Path) -> tuple[Path, ...]:
    """The adapters that the one in ``folder`` was learned on top of, in order.

    Raises UserError when one is gone or is not the same any more.
    """
    import json

    file = folder / NEEDED
    if not file.exists():
        return ()
    try:
        entries = [
            (Path(one["path"]), str(one["sha256"])) for one in json.loads(file.read_text("utf-8"))["merge_first"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read: {error!r}", hint="it lists the adapters that were merged first"
        ) from error
    for path, digest in entries:
        weights = path / WEIGHTS
        if not weights.is_file():
            raise UserError(
                f"{folder} was learned on top of the adapter {path}, which is not there any more",
                hint=f"put it back, or write its new place into {file}",
            )
        if _digest(weights) != digest:
            raise UserError(
                f"{folder} was learned on top of the adapter {path}, which has changed since",
                hint="put the old one back: on another one this adapter answers differently",
            )
    return tuple(path for path, _ in entries)


def with_needed(folders: Sequence[Path]) -> tuple[Path, ...]:
    """``folders`` in order, each behind those that it was learned on top of; none twice."""
    found: dict[Path, None] = {}
    for folder in folders:
        found |= dict.fromkeys((*merged_first(folder), folder))
    return tuple(found)


def write_needed(folder: Path, needed: Sequence[Path]) -> None:
    """Write down in ``folder`` that its adapter was learned on top of ``needed``."""
    if needed:
        entries = [{"path": str(path), "sha256": _digest(path / WEIGHTS)} for path in needed]
        write_json(folder / NEEDED, {"merge_first": entries})


def open_adapter(model: Any, folder: Path, *, trainable: bool = False, fp32: bool = True) -> Any:
    """``model`` with the adapter in ``folder`` on it. ``fp32``: 16-bit adapters are computed in fp32.

    Raises ConfigError when it was not made for this model.
    """
    from peft import PeftModel

    check_fits(model, folder)
    try:
        return PeftModel.from_pretrained(
            model, str(folder), is_trainable=trainable, autocast_adapter_dtype=fp32, local_files_only=True
        )
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder}: the adapter does not fit this model: {str(error).splitlines()[0]}", hint=_made_for(folder)
        ) from error


def open_with_needed(model: Any, folder: Path, *, fp32: bool = True) -> Any:
    """``model`` as the adapter in ``folder`` knows it: what it was learned on top of is merged first. Raises UserError."""
    return open_adapter(merge(model, merged_first(folder)), folder, fp32=fp32)


def merge(model: Any, folders: Sequence[Path]) -> Any:
    """``model`` with the adapters merged into its weights, one after the other. Raises ConfigError."""
    for folder in folders:
        if any(not parameter.is_floating_point() for parameter in model.parameters()):
            raise ConfigError(
                f"method.merge_first: {folder} cannot be merged into quantized weights exactly",
                hint="merge it with tunesmith export --to hf dtype=float32 first and train on that folder",
            )
        model = open_adapter(model, folder).merge_and_unload()
        for left in ("peft_config", "peft_type"):  # peft's traces on the plain model
            if left in vars(model):
                delattr(model, left)
    return model


def check_fits(model: Any, folder: Path) -> None:
    """Compare the layers and shapes of the adapter in ``folder`` with the model's. Raises ConfigError."""
    from safetensors import SafetensorError, safe_open

    modules = dict(model.named_modules())
    rows = read_config(folder).get("trainable_token_indices") or {}
    last = max((max(ids) for ids in (rows.values() if isinstance(rows, dict) else [rows]) if ids), default=-1)
    if last >= model.get_input_embeddings().weight.shape[0]:
        raise ConfigError(
            f"{folder}: the adapter learned tokens that were new to its base (up to id {last}), which this model does not have",
            hint="give the same model.add_tokens / model.add_special_tokens as the run that it comes from",
        )
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read: {error}", hint="the file is missing or damaged") from error
    for stored, shape in shapes.items():
        path = stored.removeprefix("base_model.model.")
        for mark, axis in ((".lora_A.", 1), (".lora_B.", 0)):
            name, found, _ = path.partition(mark)
            if not found or ".base_layer" in name:
                continue
            weight = getattr(modules.get(name), "weight", None)
            if name not in modules:
                raise ConfigError(
                    f"{folder}: the adapter changes {name}, which this model does not have", hint=_made_for(folder)
                )
            sizes = (getattr(modules[name], "out_features", None), getattr(modules[name], "in_features", None))
            if sizes == (None, None) or weight is None:
                continue
            if sizes[axis] != shape[axis]:
                raise ConfigError(
                    f"{folder}: the adapter was made for a {name} with {shape[axis]} "
                    f"{'inputs' if axis else 'outputs'}, this model's has {sizes[axis]}",
                    hint=_made_for(folder),
                )


def _made_for(folder: Path) -> str:
    name = read_config(folder).get("base_model_name_or_path") or "a base it does not name"
    return f"adapter and model must belong together; this adapter was made for {name}"


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
