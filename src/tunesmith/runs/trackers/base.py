"""The protocol of a tracker: one file for each service, ``open(about) -> Tracker``. Settings of its own it takes from its
own environment variables (keys and servers), as its users know them; nothing secret passes through our configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class About:
    """What a tracker is told of the run. ``folder``: where it may keep files of its own, inside the run folder."""

    run_id: str
    name: str
    project: str
    folder: Path
    settings: Mapping[str, Any]
    offline: bool = False
    key: str | None = None
    """What ``Tracker.key`` was when the run was tracked before; a resumed run goes on under it."""


class Tracker(Protocol):
    """Takes figures. Whatever it raises ends this tracker and never the run."""

    key: str | None
    """What the service knows the run by, to go on after an interruption."""
    where: str
    """Where a person finds the figures: an address or a folder."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of a step, such as ``{"train/loss": 1.2}``."""

    def finish(self, state: str) -> None:
        """The run ended as ``finished``, ``stopped``, ``failed`` or ``interrupted``; what was logged is sent or on disk."""
