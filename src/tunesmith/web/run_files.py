"""Runs and their files as the page sees them: found in the list of runs only, and never outside a run's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunesmith.runs.folder import RunFolder, list_runs

PICTURES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
}
DRAWINGS = {".svg": "image/svg+xml"}
TEXTS = {".txt", ".md", ".json", ".jsonl", ".yaml", ".yml", ".csv", ".log"}
MOST_FILES = 200


@dataclass(frozen=True)
class Artifact:
    """A file below the run's ``artifacts``."""

    name: str
    """Its path inside the run folder, with slashes."""
    bytes: int
    changed: float

    @property
    def is_picture(self) -> bool:
        return Path(self.name).suffix.lower() in {**PICTURES, **DRAWINGS}


def known_run(id: str) -> RunFolder | None:
    """The run with exactly this id, out of the list of runs; an id from a URL is never made into a path."""
    return next((run for run in list_runs() if run.id == id), None)


def artifacts(run: RunFolder) -> list[Artifact]:
    """The files below ``artifacts``, by name, at most MOST_FILES; links that lead out of the run folder are left out."""
    found: list[Artifact] = []
    if not run.artifacts.is_dir():
        return found
    for path in sorted(run.artifacts.rglob("*")):
        name = path.relative_to(run.path).as_posix()
        if any(part.startswith(".") for part in path.relative_to(run.path).parts):
            continue
        if (inside := confined(run, name)) is not None:
            info = inside.stat()
            found.append(Artifact(name, info.st_size, info.st_mtime))
            if len(found) == MOST_FILES:
                break
    return found


def confined(run: RunFolder, name: str) -> Path | None:
    """The file ``name`` of the run, resolved; None when there is none or when it lies outside the run folder."""
    root = run.path.resolve()
    try:
        path = (root / name).resolve()
        return path if path.is_relative_to(root) and path.is_file() else None
    except (OSError, ValueError):
        return None


def served_as(path: Path) -> tuple[str, bool]:
    """Content type, and whether a browser may show it (else it is downloaded). Reports in HTML are shown, in a sandbox without scripts
    or anything from outside (``app.run_file``); other text is shown as text."""
    suffix = path.suffix.lower()
    if suffix in PICTURES:
        return PICTURES[suffix], True
    if suffix in DRAWINGS:
        return DRAWINGS[suffix], True
    if suffix == ".html":
        return "text/html; charset=utf-8", True
    if suffix in TEXTS:
        return "text/plain; charset=utf-8", True
    return "application/octet-stream", False
