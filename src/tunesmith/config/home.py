"""Where Tunesmith keeps what it downloads and what it makes: ``$TUNESMITH_HOME``, else ``~/.tunesmith``."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The folder that holds ``models/`` (downloads and their conversions) and ``runs/``."""
    value = os.environ.get("TUNESMITH_HOME")
    return (Path(value).expanduser() if value else Path.home() / ".tunesmith").absolute()


def models_folder() -> Path:
    """Downloaded and converted models."""
    return home() / "models"


def runs_folder() -> Path:
    """Run folders; ``$TUNESMITH_RUNS`` moves them elsewhere."""
    value = os.environ.get("TUNESMITH_RUNS")
    return Path(value).expanduser().absolute() if value else home() / "runs"
