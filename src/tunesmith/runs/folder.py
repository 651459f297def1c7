"""The run folder: the only state of a run. The command line, the page and a crash all read the same files.

::

    config.yaml     the fully resolved config
    status.json     state, step, process; replaced atomically
    metrics.jsonl   one JSON object per line, appended; a torn last line (kill -9, power cut) is ignored by readers
    log.txt         what the process printed, tracebacks included
    checkpoints/    step-N/, complete or not there
    artifacts/      plots, reports, exports
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml
from filelock import FileLock, Timeout

from tunesmith.config.errors import ReferenceNotFoundError, UserError
from tunesmith.config.files import sync_folder, write_atomic, write_json
from tunesmith.config.home import runs_folder
from tunesmith.config.plugins import suggestion

State = Literal["created", "running", "finished", "stopped", "failed", "interrupted"]
_STEP = re.compile(r"step-(\d+)$")


@dataclass(frozen=True)
class Status:
    """Where a run stands. Times are seconds since the epoch; ``interrupted`` is derived: running, but no such process."""

    state: State = "created"
    what: str = ""
    """The activity in words, for example ``training`` or ``evaluating``."""
    step: int = 0
    total_steps: int = 0
    created: float = 0.0
    started: float = 0.0
    updated: float = 0.0
    pid: int = 0
    pid_started: float = 0.0
    """Start time of the process, so that a recycled pid is not taken for the run."""
    error: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    """Final figures, for example ``{"loss": 1.9, "eval_loss": 2.0, "best_step": 40}``."""
    note: str = ""
    """Why a finished run ended before its last step."""

    @property
    def active(self) -> bool:
        return self.state == "running"


def process_start(pid: int) -> float:
    """Start time of process ``pid`` in seconds since the epoch; 0 when there is none."""
    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return 0.0


class RunFolder:
    """Typed reader and writer of one run folder."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    # -- where things are ------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def log_path(self) -> Path:
        return self.path / "log.txt"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def artifacts(self) -> Path:
        return self.path / "artifacts"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    # -- making and opening ----------------------------------------------------------------------------------------

    @classmethod
    def create(cls, config_text: str, name: str, root: Path | None = None) -> RunFolder:
        """A new folder named ``<date>-<time>-<name>`` under ``root``, with its config. Two at once never share one."""
        root = root or runs_folder()
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{root}: the folder of the runs cannot be made ({error.strerror})",
                hint="TUNESMITH_HOME (or TUNESMITH_RUNS) names a folder that you may write to",
            ) from error
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:48] or "run"
        stem = f"{datetime.now():%Y%m%d-%H%M%S}-{slug}"
        for attempt in range(1000):
            path = root / (stem if attempt == 0 else f"{stem}-{attempt + 1}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            run = cls(path)
            write_atomic(run.config_path, config_text)
            run.write_status(Status(created=time.time()))
            sync_folder(root)
            return run
        raise UserError(f"{root}: cannot find a free name for {stem}")

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run folder. Raises ReferenceNotFoundError when ``path`` is none."""
        run = cls(path)
        if (run.path / "trainer.json").is_file():
            raise ReferenceNotFoundError(
                f"{path} is a checkpoint: a run goes on from its whole folder",
                hint="that has config.yaml, rows.json and checkpoints/ in it; copy it whole and name it",
            )
        if not run.config_path.is_file():
            raise ReferenceNotFoundError(f"{path} is not a run folder: it has no config.yaml")
        return run

    # -- status ----------------------------------------------------------------------------------------------------

    def stored_status(self) -> Status:
        """What status.json says, whether or not its process still lives."""
        try:
            raw = json.loads((self.path / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return Status(created=self.path.stat().st_mtime if self.path.exists() else 0.0)
        known = {f.name: type(f.default) if f.default is not MISSING else dict for f in fields(Status)}
        kept = raw.items() if isinstance(raw, dict) else ()
        values: dict[str, Any] = {
            k: v for k, v in kept if k in known and isinstance(v, (int, float) if known[k] is float else known[k])
        }
        return Status(**values)

    def status(self) -> Status:
        """Where the run stands now; ``interrupted`` when its process is gone without having said goodbye."""
        status = self.stored_status()
        if status.active and not self._alive(status):
            return replace(status, state="interrupted")
        return status

    @staticmethod
    def _alive(status: Status) -> bool:
        if not status.pid:
            return time.time() - status.updated < 30  # being started: the process writes its pid as its first act
        started = process_start(status.pid)
        return started > 0 and abs(started - status.pid_started) < 2

    def write_status(self, status: Status) -> Status:
        """Replace status.json atomically; stamps ``updated``."""
        status = replace(status, updated=time.time())
        write_json(self.path / "status.json", asdict(status))
        return status

    def update_status(self, **changes: Any) -> Status:
        """Change some fields of the stored status."""
        return self.write_status(replace(self.stored_status(), **changes))

    @contextmanager
    def claimed(self, what: str) -> Iterator[Status]:
        """This process alone works on the run inside the block. Raises UserError when another live process does.

        A lock of the operating system decides, which ends with its process; two that start at once cannot both win.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            status = self.stored_status()
            raise UserError(
                f"run {self.id} is being worked on by process {status.pid} ({status.what or 'running'})",
                hint="wait for it, or stop it first",
            ) from None
        try:
            yield self.claim(what)
        finally:
            lock.release()

    def claim(self, what: str) -> Status:
        """Write this process into the status. Raises UserError when another live process is there."""
        status = self.status()
        if status.active and status.pid not in (0, os.getpid()):
            raise UserError(
                f"run {self.id} is being worked on by process {status.pid} ({status.what or 'running'})",
                hint="wait for it, or stop it first",
            )
        pid = os.getpid()
        return self.update_status(
            state="running", what=what, pid=pid, pid_started=process_start(pid), started=time.time(), error="", note=""
        )

    # -- config, metrics, log --------------------------------------------------------------------------------------

    def config_values(self) -> dict[str, Any]:
        """config.yaml as plain values (the verbs know its class)."""
        values = yaml.safe_load(self.config_path.read_text(encoding="utf-8"))
        return values if isinstance(values, dict) else {}

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """One line of metrics. One write call, so that a crash tears at most the last line."""
        line = json.dumps(dict(record), ensure_ascii=False) + "\n"
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(line)

    def metrics(self) -> list[dict[str, Any]]:
        """Every metric record, in order; a torn line is left out."""
        return list(self._metric_lines())

    def _metric_lines(self) -> Iterator[dict[str, Any]]:
        if not self.metrics_path.exists():
            return
        with self.metrics_path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if not line.endswith("\n"):
                    return
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict):
                    yield record

    def truncate_metrics(self, last_step: int) -> None:
        """Drop records after ``last_step``: a resumed run does those steps again and must not log them twice."""
        kept = [r for r in self.metrics() if r.get("step", 0) <= last_step]
        write_atomic(self.metrics_path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))

    def log_tail(self, lines: int = 200) -> str:
        """The last lines of the log (at most 256 KiB are read)."""
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 256 * 1024))
            text = file.read().decode("utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def checkpoint_steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending. A half-written one has another name and is not listed."""
        if not self.checkpoints.is_dir():
            return []
        found = (_STEP.fullmatch(p.name) for p in self.checkpoints.iterdir() if p.is_dir())
        return sorted(int(m.group(1)) for m in found if m)

    def checkpoint(self, step: int | None = None) -> Path:
        """Folder of a checkpoint (default: the newest). Raises ReferenceNotFoundError naming what there is."""
        steps = self.checkpoint_steps()
        if not steps:
            raise ReferenceNotFoundError(
                f"run {self.id} has no checkpoint yet", hint=f"its state is {self.status().state}; see {self.log_path}"
            )
        if step is None:
            step = steps[-1]
        if step not in steps:
            listed = ", ".join(map(str, steps))
            raise ReferenceNotFoundError(f"run {self.id} has no checkpoint at step {step}", hint=f"it has: {listed}")
        return self.checkpoints / f"step-{step}"

    def best_step(self) -> int | None:
        """The step with the lowest evaluation loss so far, as the newest checkpoint knows it; None without an evaluation."""
        steps = self.checkpoint_steps()
        if not steps:
            return None
        try:
            record = json.loads((self.checkpoints / f"step-{steps[-1]}" / "trainer.json").read_text(encoding="utf-8"))
            found = record["position"].get("best_step")
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return None
        return found if isinstance(found, int) else None

    def best_checkpoint(self) -> Path:
        """Folder of the best checkpoint. Raises ReferenceNotFoundError when there is none, or it was not kept."""
        best, listed = self.best_step(), ", ".join(f"step-{s}" for s in self.checkpoint_steps()) or "none"
        if best is None:
            raise ReferenceNotFoundError(
                f"run {self.id} has no best checkpoint: nothing was evaluated at a checkpoint",
                hint=f"its checkpoints: {listed}; the best is told by held-out rows (data.eval or data.eval_share)",
            )
        if best not in self.checkpoint_steps():
            raise ReferenceNotFoundError(
                f"the best checkpoint of run {self.id}, of step {best}, was not kept (train.keep_best)",
                hint=f"its checkpoints: {listed}",
            )
        return self.checkpoint(best)

    def delete(self) -> None:
        """Remove the whole folder. Raises UserError while a process works on it."""
        if self.status().active:
            raise UserError(f"run {self.id} is running", hint="stop it first")
        trash = self.path.with_name(f".deleting-{self.path.name}")
        self.path.rename(trash)
        shutil.rmtree(trash)


def list_runs(root: Path | None = None) -> list[RunFolder]:
    """All runs under ``root``, newest first."""
    root = root or runs_folder()
    if not root.is_dir():
        return []
    found = [RunFolder(p) for p in root.iterdir() if not p.name.startswith(".") and (p / "config.yaml").is_file()]
    return sorted(found, key=lambda r: (r.stored_status().created, r.id), reverse=True)


def find_run(text: str, root: Path | None = None) -> RunFolder:
    """A run by path, by id, by a unique beginning or part of its id, or ``last``. Raises ReferenceNotFoundError."""
    path = Path(text).expanduser()
    if (path / "trainer.json").is_file():
        return RunFolder.open(path)
    if (path / "config.yaml").is_file() and (os.sep in text or "/" in text or path.is_absolute()):
        return RunFolder(path.absolute())
    runs = list_runs(root)
    if text == "last" and runs:
        return runs[0]
    by_id = {r.id: r for r in runs}
    if text in by_id:
        return by_id[text]
    matches = [r for r in runs if r.id.startswith(text)] or [r for r in runs if text and text in r.id]
    if len(matches) == 1:
        return matches[0]
    folder = root or runs_folder()
    if matches:
        listed = ", ".join(r.id for r in matches[:5])
        raise ReferenceNotFoundError(
            f"{text!r} could be any of {len(matches)} runs: {listed}", hint="write more of the id"
        )
    near = suggestion(text, by_id)
    if not near.startswith("did you mean"):
        near = "`tunesmith runs list` lists them; a model is written demo, ./folder, hf:org/name or org/name"
    hint = near if runs else "start one with `tunesmith train`, or try `tunesmith demo`"
    raise ReferenceNotFoundError(f"there is no run {text!r} in {folder}", hint=hint)
