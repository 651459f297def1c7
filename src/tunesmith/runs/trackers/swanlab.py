"""SwanLab. SWANLAB_API_KEY and SWANLAB_WORKSPACE are its own environment variables."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from tunesmith.runs.trackers.base import About

PACKAGE = "swanlab"


class SwanLab:
    """One experiment of a project; resumed under an id made from the run's."""

    def __init__(self, about: About) -> None:
        import swanlab

        self.key = about.key or hashlib.sha256(about.run_id.encode()).hexdigest()[:21]  # 21 characters are asked for
        about.folder.mkdir(parents=True, exist_ok=True)
        resumed = {} if about.offline else {"id": self.key, "resume": "allow"}
        swanlab.init(
            project=about.project, experiment_name=about.name, config=dict(about.settings), logdir=str(about.folder),
            mode="offline" if about.offline else "cloud", **resumed,
        )  # fmt: skip
        self._swanlab = swanlab
        self.where = str(about.folder) if about.offline else "https://swanlab.cn"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._swanlab.log(dict(values), step=step)

    def finish(self, state: str) -> None:
        self._swanlab.finish()


def open(about: About) -> SwanLab:
    """Raises what swanlab raises: no key, no network."""
    return SwanLab(about)
