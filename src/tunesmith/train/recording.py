"""Lines of metrics, and the message when the disk refuses one."""

from __future__ import annotations

from typing import Any

from tunesmith.config.errors import TrainingError
from tunesmith.runs.folder import RunFolder


def record(run: RunFolder, record: dict[str, Any]) -> None:
    """A line of metrics. Raises TrainingError when the disk refuses; the checkpoints before are whole."""
    try:
        run.append_metrics(record)
    except OSError as error:
        raise TrainingError(
            f"the metrics of step {record['step']} could not be written to {run.metrics_path}: {error}",
            hint="free some space and resume; the checkpoints before it are whole",
        ) from error
