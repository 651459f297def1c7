"""A tiny run that has learned to end its answers: deployments of it can be proved whole, in seconds."""

from __future__ import annotations

import json
from pathlib import Path

from tunesmith.config.load import dump
from tunesmith.config.progress import SILENT
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs.run_config import load_config
from tunesmith.verbs.train import execute

SETTINGS = [
    "data.eval_share=0.25", "data.date=2026-01-01", "precision=fp32", "method=full", "train.max_steps=30", "train.batch=8", "train.lr=1e-2",
    "train.save_every=30", "data.max_length=128",
]  # fmt: skip
ANSWERS = ("Yes.", "No.", "Perhaps.")


def ending_run(base: Path, root: Path, *settings: str, system: str | None = None) -> RunFolder:
    """``base`` after thirty steps on rows that are answered in one word, all with the system prompt ``system``."""
    root.mkdir(parents=True, exist_ok=True)
    rows = [{"instruction": f"Is {i} more than {30 - i}?", "output": ANSWERS[i % 3]} for i in range(32)]
    if system is not None:
        rows = [{**row, "system": system} for row in rows]
    data = root / "short.json"
    data.write_text(json.dumps(rows), encoding="utf-8")
    config = load_config(None, [f"model={base}", f"data={data}", *SETTINGS, "output.name=ending", *settings])
    run = RunFolder.create(dump(config), "ending", root)
    execute(run, SILENT)
    return run
