"""The token sequences that exports are compared on: rows that the run kept, else a few of our own."""

from __future__ import annotations

import json
from pathlib import Path

from tunesmith.config.progress import SILENT, Progress
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs.calibration import has_new_tokens
from tunesmith.verbs.gguf import replace_folder
from tunesmith.verbs.targets import Target

LONGEST = 512
"""So many tokens of each sequence are compared: the distributions of one (512 × 150k × 4 B = 0.3 GB) are in memory."""


def kept_probes(run: RunFolder, progress: Progress) -> list[list[int]]:
    """Rows as token ids that ``run`` kept to compare on; none, which is said, when its rows.json cannot be read."""
    place = run.path / "rows.json"
    if not place.is_file():
        return []
    try:
        probes = json.loads(place.read_text(encoding="utf-8"))["probes"]
        return [[int(token) for token in ids] for ids in probes]
    except (OSError, ValueError, KeyError, TypeError):
        progress.say(f"warning: {place} cannot be read: the rows that the run kept to compare on are left out")
        return []


def probe_tokens(target: Target, merged: Path, rows: int, progress: Progress = SILENT) -> list[tuple[int, ...]]:
    """Token sequences to compare on: those the run kept (held-out rows, else training rows), else a few of our own.

    They are kept with the run since its data may be gone by now.
    """
    from tunesmith.data.example import Chat, Message

    run = (
        target.run if target.learned is not None or not has_new_tokens(target) else None
    )  # its rows may hold new tokens
    kept = kept_probes(run, progress)[:rows] if run is not None else []
    if found := [tuple(ids[:LONGEST]) for ids in kept if len(ids) > 1]:
        return found
    pairs = [
        ("What is the capital of France?", "The capital of France is Paris."),
        ("你好，你是谁？", "你好！我是一个助手。"),
    ]
    renderer = replace_folder(target, merged)
    return [renderer.render(Chat((Message("user", q), Message("assistant", a)))).ids for q, a in pairs]
