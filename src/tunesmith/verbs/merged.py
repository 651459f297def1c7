"""The whole model of a run or model: its base with what was learned in it, made once and kept with the run."""

from __future__ import annotations

import re
from pathlib import Path

from tunesmith.config.plugins import load as load_plugin
from tunesmith.config.progress import Progress
from tunesmith.export.base import Report
from tunesmith.verbs.targets import Target, renderer_of

TARGETS = "tunesmith.export.targets"


def slug(target: Target) -> str:
    """A short file name for a target."""
    name = target.config.output.name if target.config is not None and target.config.output.name else target.name
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:60] or "model"


def merged_folder(target: Target, progress: Progress, out: Path | None = None) -> tuple[Path, Report | None]:
    """The whole model of a target in the base's numbers: the base as it is, or with what was learned (kept with the run, made once)."""
    if target.learned is None and out is None:
        return target.base.folder, None
    if out is None:
        assert target.learned is not None
        parent = target.run.artifacts if target.run is not None else Path.cwd()
        out = parent / f"merged-{target.learned.name}"
        if out.is_dir():
            return out, None
    from tunesmith.render.stop import stop_token_ids

    hf = load_plugin(TARGETS, "hf")
    stops = stop_token_ids(renderer_of(target))
    base = target.base.folder if target.learned is not None else None
    report = hf.export(
        target.learned or target.base.folder, out, hf.Config(), progress, base=base, stop_token_ids=stops
    )
    return out, report
