"""Lines of metrics and samples and the state of a running run, and the message when the disk refuses them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.config.errors import TrainingError
from tunesmith.config.files import write_atomic
from tunesmith.runs.folder import RunFolder

SAMPLES = "samples.jsonl"


def record(run: RunFolder, record: dict[str, Any]) -> None:
    """A line of metrics. Raises TrainingError when the disk refuses; the checkpoints before are whole."""
    with _said(f"the metrics of step {record['step']}", run.metrics_path):
        run.append_metrics(record)


def record_status(run: RunFolder, **changes: Any) -> None:
    """Where the run stands. Raises TrainingError when the disk refuses."""
    with _said("the state of the run", run.path / "status.json"):
        run.update_status(**changes)


def record_samples(run: RunFolder, step: int, pairs: list[tuple[str, str]]) -> None:
    """Prompts with their answers after ``step``, in one write. Raises TrainingError when the disk refuses."""
    place = run.artifacts / SAMPLES
    lines = [json.dumps({"step": step, "prompt": p, "text": t}, ensure_ascii=False) + "\n" for p, t in pairs]
    with _said(f"the samples of step {step}", place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("a", encoding="utf-8") as file:
            file.write("".join(lines))


def forget_after(run: RunFolder, step: int) -> None:
    """Cut off metrics and samples after ``step``: a resumed run does those steps again and must not log them twice."""
    with _said("the metrics", run.metrics_path):
        run.truncate_metrics(step)
        place = run.artifacts / SAMPLES
        if place.is_file():
            lines = place.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            write_atomic(place, "".join(line for line in lines if line.endswith("\n") and _step(line) <= step))


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


@contextmanager
def _said(what: str, place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{what} could not be written to {place}: {error}",
            hint="free some space and resume; the checkpoints before it are whole",
        ) from error
