"""Checkpoints: complete or not there. Everything that the next step depends on, without pickle.

::

    adapter_model.safetensors, adapter_config.json   the adapter in peft's format (fp32)
    optimizer.safetensors                            "<parameter>|exp_avg" …, step counts
    trainer.json                                     step, counters, random states, the optimizer's numbers, the loss scale, the plan and the
                                                     machine it ran on, size and SHA-256 of every other file
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tunesmith.config.errors import TrainingError
from tunesmith.config.files import sync_folder, write_json
from tunesmith.train import optimizer_state, random_state
from tunesmith.train.checkpoint_files import RECORD, listed
from tunesmith.train.masters import Masters
from tunesmith.train.optimizers.base import evaluation_weights
from tunesmith.train.out_of_memory import is_out_of_memory
from tunesmith.train.position import Position


def save(
    folder: Path,
    position: Position,
    masters: Masters,
    optimizer: torch.optim.Optimizer,
    save_model: Callable[[Path], None],
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``folder`` (``…/step-N``) beside itself, flush, rename. Raises TrainingError when the disk refuses.

    ``notes``: further JSON values for ``trainer.json``, such as the machine.
    Whatever happens, earlier checkpoints stay as they are and no incomplete one carries a checkpoint's name.
    """
    temporary = folder.parent / f".{folder.name}.partial"
    remove_partials(folder.parent)
    try:
        temporary.mkdir(parents=True)
        with evaluation_weights(optimizer, masters):
            save_model(temporary)
        tensors, record = optimizer_state.dump(optimizer, masters.named())
        save_file(tensors, temporary / "optimizer.safetensors")
        write_json(
            temporary / RECORD,
            {
                "position": position.values(), "random": random_state.dump(), "optimizer": record, "torch": torch.__version__,
                **({"scaler": masters.scaler.state()} if masters.scaler else {}), **(notes or {}), "files": listed(temporary),
            },
        )  # fmt: skip
        for path in temporary.rglob("*"):
            if path.is_file():
                _flush(path)
        sync_folder(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        sync_folder(folder.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_out_of_memory(error):
            raise
        free = shutil.disk_usage(folder.parent if folder.parent.exists() else folder.parent.parent).free
        raise TrainingError(
            f"the checkpoint of step {position.step} could not be written to {folder.parent}: {error} ({free / 2**20:.0f} MiB free)",
            hint="free some space and resume; the checkpoints before it are whole",
        ) from error
    return folder


def load(folder: Path, masters: Masters, optimizer: torch.optim.Optimizer, state: dict[str, torch.Tensor]) -> Position:
    """Bring masters, optimizer and random states back. ``state``: the fp32 parameters saved with the checkpoint."""
    masters.load(state)
    record = read(folder)
    tensors = load_file(folder / "optimizer.safetensors")
    optimizer_state.restore(optimizer, masters.named(), tensors, record.get("optimizer", {}))
    masters.publish()  # the optimizer may train at other weights than the saved ones
    if masters.scaler:
        masters.scaler.load(record.get("scaler", {}))
    random_state.restore(record["random"])
    return Position.of(record["position"])


def read(folder: Path) -> dict[str, Any]:
    """The ``trainer.json`` of a checkpoint."""
    record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return record


def remove_partials(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    if folder.is_dir():
        for path in folder.glob(".step-*.partial"):
            shutil.rmtree(path, ignore_errors=True)


def prune(folder: Path, steps: list[int], keep: int, best: int | None = None) -> None:
    """Remove all but the newest ``keep`` checkpoints and that of step ``best``."""
    remove(folder, [step for step in steps[:-keep] if step != best])


def remove(folder: Path, steps: Sequence[int]) -> None:
    """Remove the checkpoints of these steps."""
    for step in steps:
        old = folder / f"step-{step}"
        trash = folder / f".step-{step}.partial"
        old.rename(trash)  # first the name, so that a crash in between leaves no checkpoint that looks whole
        shutil.rmtree(trash, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)  # Windows flushes only what is open for writing
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
