"""Short real trainings for the tests of methods: one run of six steps, and the same run taken up again at its third."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tunesmith.config.load import dump
from tunesmith.config.progress import SILENT
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs.run_config import load_config
from tunesmith.verbs.train import execute

SETTINGS = [
    "data=lantern_bay", "data.limit=14", "data.eval_share=0.15", "data.max_length=224", "data.date=2026-01-01", "precision=fp32",
    "train.max_steps=6", "train.batch=4", "train.micro_tokens=256", "train.lr=2e-3", "train.save_every=3", "train.keep=2",
]  # fmt: skip


def train(base: Path, root: Path, name: str, *settings: str) -> RunFolder:
    """Six steps on ``base`` through the whole recipe, with checkpoints at 3 and 6. Later settings win."""
    config = load_config(None, [f"model={base}", *SETTINGS, *settings, f"output.name={name}"])
    run = RunFolder.create(dump(config), name, root)
    execute(run, SILENT)
    return run


def resumed(run: RunFolder) -> RunFolder:
    """The same run as if it had been stopped after step 3, taken up again and finished."""
    again = RunFolder(run.path.with_name(f"{run.path.name}-again"))
    shutil.copytree(run.path, again.path)
    shutil.rmtree(again.checkpoints / "step-6")
    again.update_status(state="stopped", step=3)
    execute(again, SILENT)
    return again


def assert_same(found: RunFolder, expected: RunFolder) -> None:
    """Every file of the last checkpoint, tensor for tensor and word for word, and every loss."""
    mine, theirs = found.checkpoint(6), expected.checkpoint(6)
    assert sorted(p.name for p in mine.iterdir()) == sorted(p.name for p in theirs.iterdir())
    for path in theirs.iterdir():
        if path.suffix == ".safetensors":
            ours, wanted = load_file(mine / path.name), load_file(path)
            assert ours.keys() == wanted.keys()
            assert [n for n in wanted if not torch.equal(ours[n], wanted[n])] == [], path.name
        else:
            assert (mine / path.name).read_bytes() == path.read_bytes(), path.name
    assert losses(found) == losses(expected)


def losses(run: RunFolder) -> list[tuple[str, int, float]]:
    return [(r["kind"], r["step"], r.get("loss", r.get("eval_loss"))) for r in run.metrics()]


def changes_of(run: RunFolder) -> Any:
    """The file that says how the model differs in form from its base."""
    return json.loads((run.checkpoint() / "model_changes.json").read_text(encoding="utf-8"))


def logits(model: Any, ids: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40)[None] * 7 + 3 if ids is None else ids).logits[0].float()
