"""Work with a run beside its training (exports, deployments, comparisons): a command in a process that outlives its starter.

::

    work/<date>-<time>-<command>/work.json   the command, its process, when it began and ended, its exit code
                                 out.txt     what it answered (stdout)
                                 log.txt     what it said (stderr)

A small supervisor (``runs.supervise``) waits for the command and writes down how it ended. One at a time for each run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import psutil
from filelock import FileLock

from tunesmith.config.errors import UserError
from tunesmith.config.files import write_json
from tunesmith.runs.folder import RunFolder, process_start

State = Literal["running", "finished", "failed", "stopped", "interrupted"]
FILE = "work.json"
STOPPED = (130, 143)
"""Exit codes of commands that were ended by Ctrl-C and SIGTERM."""
STARTING = 30.0
"""Seconds that a supervisor may take to write down its process."""


@dataclass(frozen=True)
class Work:
    """One command. Times are seconds since the epoch; ``code`` is its exit code, None while it has none."""

    folder: Path
    arguments: tuple[str, ...] = ()
    """What follows ``tunesmith``: ``("export", "run:…", "--to", "gguf")``."""
    started: float = 0.0
    ended: float = 0.0
    pid: int = 0
    """Of the supervisor, which leads the group of all processes of this work."""
    pid_started: float = 0.0
    code: int | None = None

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def command(self) -> str:
        return self.arguments[0] if self.arguments else ""

    @property
    def state(self) -> State:
        """``interrupted``: the processes are gone and nobody wrote down how it ended."""
        if self.code is not None:
            return "finished" if self.code == 0 else "stopped" if self.code in STOPPED else "failed"
        if not self.pid:
            return "running" if time.time() - self.started < STARTING else "interrupted"
        found = process_start(self.pid)
        return "running" if found > 0 and abs(found - self.pid_started) < 2 else "interrupted"

    @property
    def said(self) -> str:
        """The whole of log.txt; empty when there is none."""
        return _text(self.folder / "log.txt")

    @property
    def answer(self) -> str:
        """The whole of out.txt."""
        return _text(self.folder / "out.txt")

    def save(self) -> None:
        """Replace work.json atomically."""
        write_json(self.folder / FILE, {key: value for key, value in asdict(self).items() if key != "folder"})


def start(run: RunFolder, arguments: Sequence[str]) -> Work:
    """Start ``tunesmith <arguments>`` for ``run``. Raises UserError while other work with this run goes on."""
    root = run.path / "work"
    root.mkdir(exist_ok=True)
    with FileLock(root / ".lock"):
        busy = next((one for one in listed(run) if one.state == "running"), None)
        if busy is not None:
            raise UserError(
                f"run {run.id}: `tunesmith {busy.command}` is still at work (process {busy.pid})",
                hint="wait for it, or stop it first",
            )
        work = Work(_new_folder(root, arguments[0]), tuple(arguments), started=time.time())
        work.save()
    options: dict[str, Any] = {"start_new_session": True}
    if os.name == "nt":
        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS}  # type: ignore[attr-defined]
    with (work.folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tunesmith.runs.supervise", str(work.folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            **options,
        )
    work = replace(work, pid=process.pid, pid_started=process_start(process.pid))
    # the supervisor writes the same; whoever is later changes nothing
    if read(work.folder).pid == 0:
        work.save()
    return work


def read(folder: Path) -> Work:
    """The work in ``folder``; what its file does not tell is as at the beginning."""
    try:
        raw = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raw = {}
    known = {f.name: type(f.default) for f in fields(Work) if f.default is not MISSING}
    values = {k: v for k, v in raw.items() if k in known and v is not None} if isinstance(raw, dict) else {}
    return Work(folder, **(values | {"arguments": tuple(map(str, values.get("arguments", ())))}))


def listed(run: RunFolder) -> list[Work]:
    """All work done with ``run``, newest first."""
    root = run.path / "work"
    if not root.is_dir():
        return []
    return [read(folder) for folder in sorted(root.iterdir(), reverse=True) if (folder / FILE).is_file()]


def stop(work: Work, patience: float = 20.0) -> None:
    """Ask the command to end (as Ctrl-C does), and end it after ``patience`` seconds. Raises UserError when it has ended."""
    if work.state != "running":
        raise UserError(f"`tunesmith {work.command}` is not running (it is {work.state})")
    try:
        supervisor = psutil.Process(work.pid)
        family = [supervisor, *supervisor.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family[1:2]:  # the command itself, which ends what it started
        process.terminate() if os.name == "nt" else process.send_signal(signal.SIGINT)
    _, alive = psutil.wait_procs(family, timeout=patience)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=5)
    after = read(work.folder)
    if after.code is None:
        replace(after, code=130, ended=time.time()).save()


def remove(work: Work) -> None:
    """Forget a work that has ended; what it made stays."""
    if work.state == "running":
        raise UserError(f"`tunesmith {work.command}` is still at work", hint="stop it first")
    shutil.rmtree(work.folder, ignore_errors=True)


def _new_folder(root: Path, command: str) -> Path:
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{re.sub(r'[^a-z0-9]+', '-', command.lower())}"
    for attempt in range(1000):
        path = root / (stem if attempt == 0 else f"{stem}-{attempt + 1}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise UserError(f"{root}: cannot find a free name for {stem}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
