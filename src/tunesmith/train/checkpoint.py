"""Checkpoints: complete or not there. Everything that the next step depends on, without pickle.

::

    adapter_model.safetensors, adapter_config.json   the adapter in peft's format (fp32)
    optimizer.safetensors                            "<parameter>|exp_avg" …, step counts
    trainer.json                                     step, counters, random states, the optimizer's numbers, loss scale, versions
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tunesmith.config.errors import TrainingError
from tunesmith.config.files import sync_folder, write_json
from tunesmith.train import optimizer_state
from tunesmith.train.masters import Masters


@dataclass(frozen=True)
class Position:
    """Where the loop stands."""

    step: int = 0
    tokens: int = 0
    """Tokens seen so far, prompts included."""
    best_eval: float | None = None
    last: dict[str, float] = field(default_factory=dict)
    """Latest figures (loss, eval_loss), so that a resumed run that has nothing left to do can still report them."""


def save(
    folder: Path,
    position: Position,
    masters: Masters,
    optimizer: torch.optim.Optimizer,
    save_model: Callable[[Path], None],
) -> Path:
    """Write ``folder`` (``…/step-N``) beside itself, flush, rename. Raises TrainingError when the disk refuses.

    Whatever happens, earlier checkpoints stay as they are and no incomplete one carries a checkpoint's name.
    """
    temporary = folder.parent / f".{folder.name}.partial"
    remove_partials(folder.parent)
    try:
        temporary.mkdir(parents=True)
        save_model(temporary)
        tensors, record = optimizer_state.dump(optimizer, masters.named())
        save_file(tensors, temporary / "optimizer.safetensors")
        write_json(
            temporary / "trainer.json",
            {
                "position": asdict(position), "random": _random_state(), "optimizer": record, "torch": torch.__version__,
            }
            | ({"scaler": masters.scaler.state()} if masters.scaler else {}),
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
        free = shutil.disk_usage(folder.parent if folder.parent.exists() else folder.parent.parent).free
        raise TrainingError(
            f"the checkpoint of step {position.step} could not be written to {folder.parent}: {error} ({free / 2**20:.0f} MiB free)",
            hint="free some space and resume; the checkpoints before it are whole",
        ) from error
    return folder


def load(folder: Path, masters: Masters, optimizer: torch.optim.Optimizer, state: dict[str, torch.Tensor]) -> Position:
    """Bring masters, optimizer and random states back. ``state``: the fp32 parameters saved with the checkpoint."""
    masters.load(state)
    record = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "optimizer.safetensors")
    optimizer_state.restore(optimizer, masters.named(), tensors, record.get("optimizer", {"state": {}, "groups": []}))
    if masters.scaler:
        masters.scaler.load(record.get("scaler", {}))
    _restore_random_state(record["random"])
    return Position(**record["position"])


def remove_partials(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    if folder.is_dir():
        for path in folder.glob(".step-*.partial"):
            shutil.rmtree(path, ignore_errors=True)


def prune(folder: Path, steps: list[int], keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints."""
    for step in steps[:-keep]:
        old = folder / f"step-{step}"
        trash = folder / f".step-{step}.partial"
        old.rename(trash)  # first the name, so that a crash in between leaves no checkpoint that looks whole
        shutil.rmtree(trash, ignore_errors=True)


def _random_state() -> dict[str, Any]:
    def text(tensor: torch.Tensor) -> str:
        return base64.b64encode(tensor.cpu().numpy().tobytes()).decode("ascii")

    state: dict[str, Any] = {"cpu": text(torch.get_rng_state()), "python": random.getstate()}
    if torch.cuda.is_available():
        state["cuda"] = [text(t) for t in torch.cuda.get_rng_state_all()]
    return state


def _restore_random_state(state: dict[str, Any]) -> None:
    def tensor(text: str) -> torch.Tensor:
        return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)

    torch.set_rng_state(tensor(state["cpu"]))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([tensor(t) for t in state["cuda"]])


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)  # Windows flushes only what is open for writing
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
