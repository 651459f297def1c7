"""Trackio: a local project (``trackio show``), or the Space of TRACKIO_SPACE_ID."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tunesmith.runs.trackers.base import About

PACKAGE = "trackio"


class Trackio:
    """One run of a project; resumed under its name, which is the run's id."""

    key = None

    def __init__(self, about: About) -> None:
        if about.offline:
            os.environ.pop("TRACKIO_SPACE_ID", None)
        import trackio

        self._run = trackio.init(
            project=about.project, name=about.run_id, config=dict(about.settings), resume="allow", embed=False,
            auto_log_cpu=False, auto_log_gpu=False,
        )  # fmt: skip
        space = os.environ.get("TRACKIO_SPACE_ID")
        self.where = f"https://huggingface.co/spaces/{space}" if space else f"trackio show --project {about.project}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, state: str) -> None:
        self._run.finish()


def open(about: About) -> Trackio:
    """Raises what trackio raises."""
    return Trackio(about)
