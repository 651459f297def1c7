"""Pushing what an export made: asked before the export whether it may be, done after it."""

from __future__ import annotations

from pathlib import Path

from tunesmith.config.progress import Progress
from tunesmith.export.beside import beside
from tunesmith.hub import push as hub
from tunesmith.verbs.targets import Target


def check_push(to: str, target: Target) -> None:
    """Raise UserError before any work when what is made from ``target`` cannot be pushed as ``to``."""
    hub.check_push(to, target.base.folder)


def push(place: Path, to: str, progress: Progress, *, public: bool = False) -> str:
    """Push the folder or file that an export made; returns its address. Raises UserError."""
    return hub.push(place, to, progress, beside=beside(place) if place.is_file() else None, public=public)
