"""MLflow: the server of MLFLOW_TRACKING_URI, else files in the run's ``tracking/mlflow``."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from tunesmith.runs.trackers.base import About

PACKAGE = "mlflow"
STATES = {"finished": "FINISHED", "stopped": "KILLED", "interrupted": "KILLED", "failed": "FAILED"}


class MLflow:
    """One run of an experiment that is called like the project."""

    def __init__(self, about: About) -> None:
        from mlflow.tracking import MlflowClient

        server = None if about.offline else os.environ.get("MLFLOW_TRACKING_URI")
        if server is None:
            os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # MLflow wants to be told that files are meant
        self.where = server or str(about.folder.absolute())
        self._client = MlflowClient(tracking_uri=self.where)
        if about.key is not None:
            self.key = about.key
            self._client.update_run(self.key, status="RUNNING")
            return
        known = self._client.get_experiment_by_name(about.project)
        experiment = known.experiment_id if known else self._client.create_experiment(about.project)
        self.key = str(self._client.create_run(experiment, run_name=about.name).info.run_id)
        for key, value in _flat(about.settings):
            self._client.log_param(self.key, key, str(value)[:500])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self.key, metrics=[Metric(k, v, now, step) for k, v in values.items()])

    def finish(self, state: str) -> None:
        self._client.set_terminated(self.key, STATES.get(state, "FINISHED"))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return found


def open(about: About) -> MLflow:
    """Raises what mlflow raises: no server there."""
    return MLflow(about)
