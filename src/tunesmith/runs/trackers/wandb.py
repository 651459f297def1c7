"""Weights & Biases. WANDB_API_KEY, WANDB_ENTITY and WANDB_BASE_URL are its own environment variables."""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith.runs.trackers.base import About

PACKAGE = "wandb"


class Wandb:
    """One run of a project; resumed under the run's id."""

    def __init__(self, about: About) -> None:
        import wandb

        about.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=about.project, name=about.name, id=about.key or about.run_id, resume="allow", dir=str(about.folder),
            config=dict(about.settings), mode="offline" if about.offline else None,
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )  # fmt: skip
        self.key = str(self._run.id)
        self.where = str(self._run.url or about.folder)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, state: str) -> None:
        self._run.finish(exit_code=0 if state in ("finished", "stopped") else 1)


def open(about: About) -> Wandb:
    """Raises what wandb raises: no key, no network."""
    return Wandb(about)
