"""Figures of a run sent to trackers (TensorBoard, Weights & Biases, …), by a process of its own that reads the run folder.

A tracker that is slow, hangs, prints, catches signals or crashes therefore cannot slow, stop or change a training; the run's
``metrics.jsonl`` is the truth, and trackers are told from it: during the run, or afterwards, or again after an interruption.
``tracking.json`` in the run folder keeps how far each one is.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from filelock import FileLock

from tunesmith.config.errors import UserError
from tunesmith.config.files import write_json
from tunesmith.runs.config import TRACKERS, TrackingConfig
from tunesmith.runs.folder import RunFolder
from tunesmith.runs.trackers.base import About, Tracker

LEFT_OUT = {"kind", "step", "time", "eta_s", "epoch"}
Say = Callable[[str], None]


def check(config: TrackingConfig) -> None:
    """Raises UserError when a tracker's package is not installed."""
    for name in config.to:
        package = importlib.import_module(f"{TRACKERS}.{name}").PACKAGE
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"tracking.to: the package {package} is not installed",
                hint=f"pip install 'tunesmith[{name}]', or leave it out",
            )


def start(run: RunFolder, config: TrackingConfig) -> subprocess.Popen[bytes] | None:
    """The process that follows ``run`` while it trains; None without trackers. Its output goes to ``tracking.log``."""
    if not config.to:
        return None
    command = [sys.executable, "-m", "tunesmith", "runs", "track", str(run.path), "--follow"]
    with (run.path / "tracking.log").open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )  # a session of its own: Ctrl-C at the training must not end it before the last figures


def wait(process: subprocess.Popen[bytes] | None, run: RunFolder, patience: float = 60.0) -> str | None:
    """Give the trackers time to send the last figures; words for the log when something went wrong."""
    if process is None:
        return None
    again = f"`tunesmith runs track {run.id}` sends what is missing"
    try:
        code = process.wait(patience)
    except subprocess.TimeoutExpired:
        return f"warning: the trackers are still busy after {patience:.0f} s and go on by themselves; {run.path / 'tracking.log'}"
    return (
        None if code == 0 else f"warning: a tracker failed, the run did not: see {run.path / 'tracking.log'}; {again}"
    )


class _New:
    """The lines of metrics that were not read before; all of them again when the file was replaced (a resumed run cuts it)."""

    def __init__(self, run: RunFolder) -> None:
        self.path, self.file, self.offset = run.metrics_path, -1, 0

    def records(self) -> Iterator[dict[str, Any]]:
        """Complete lines only; a torn last one is read when it is whole."""
        try:
            with self.path.open("rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino != self.file or stat.st_size < self.offset:
                    self.file, self.offset = stat.st_ino, 0
                file.seek(self.offset)
                lines = file.read().splitlines(keepends=True)
        except FileNotFoundError:
            return
        for line in lines:
            if not line.endswith(b"\n"):
                return
            self.offset += len(line)
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


@dataclass
class _Open:
    """A tracker at work, and the last step it was told for each kind of record."""

    name: str
    tracker: Tracker
    told: dict[str, int] = field(default_factory=dict)


def track(
    run: RunFolder, config: TrackingConfig, *, follow: bool = False, say: Say = print, pause: float = 1.0
) -> list[str]:
    """Tell every tracker of ``config`` what it has not been told yet; with ``follow`` until the run has ended.

    Returns the names of the trackers that failed; each failure is said, with its traceback.
    """
    with FileLock(
        run.path / ".tracking.lock"
    ):  # one at a time: who comes second sends what is left when the first has ended
        return _track(run, config, follow, say, pause)


def _track(run: RunFolder, config: TrackingConfig, follow: bool, say: Say, pause: float) -> list[str]:
    opened, failed = _open_all(run, config, say)
    read = _New(run)
    while opened:
        state = run.status().state  # asked before reading, so that nothing written before the end is missed
        for record in read.records():
            for one in list(opened):
                if int(record.get("step", 0)) > one.told.get(str(record.get("kind")), -1):
                    _guarded(one, partial(_tell, one, record), opened, failed, say)
        _remember(run, opened)
        if not follow or state not in ("running", "created"):
            for one in list(opened):
                _guarded(one, partial(one.tracker.finish, state), opened, failed, say)
            break
        time.sleep(pause)
    return failed


def _open_all(run: RunFolder, config: TrackingConfig, say: Say) -> tuple[list[_Open], list[str]]:
    kept = _kept(run)
    opened: list[_Open] = []
    failed: list[str] = []
    for name in config.to:
        before = kept.get(name, {})
        about = About(
            run_id=run.id, name=config.name or run.id, project=config.project, folder=run.path / "tracking" / name,
            settings=run.config_values(), offline=config.offline, key=before.get("key"),
        )  # fmt: skip
        try:
            tracker = importlib.import_module(f"{TRACKERS}.{name}").open(about)
        except Exception:
            say(f"{name}: could not be opened\n{traceback.format_exc()}")
            failed.append(name)
            continue
        say(f"{name}: {tracker.where}")
        opened.append(_Open(name, tracker, dict(before.get("told", {}))))
    return opened, failed


def _tell(one: _Open, record: Mapping[str, Any]) -> None:
    kind, step = str(record.get("kind")), int(record.get("step", 0))
    prefix = "train" if kind == "step" else kind
    values = {
        f"{prefix}/{key.removeprefix('eval_')}": float(value)
        for key, value in record.items()
        if key not in LEFT_OUT and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    if values:
        one.tracker.log(step, values)
    one.told[kind] = step


def _guarded(one: _Open, act: Callable[[], None], opened: list[_Open], failed: list[str], say: Say) -> None:
    """``act``; a tracker that raises is left out from then on."""
    try:
        act()
    except Exception:
        say(f"{one.name}: failed and is left out from here on\n{traceback.format_exc()}")
        opened.remove(one)
        failed.append(one.name)


def _kept(run: RunFolder) -> dict[str, Any]:
    try:
        found = json.loads((run.path / "tracking.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(run: RunFolder, opened: Sequence[_Open]) -> None:
    now = {one.name: {"key": one.tracker.key, "told": one.told, "where": one.tracker.where} for one in opened}
    kept = _kept(run)
    if {**kept, **now} != kept:
        write_json(run.path / "tracking.json", {**kept, **now})
