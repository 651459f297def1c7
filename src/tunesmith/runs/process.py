"""Runs as processes: start one that outlives its starter, and stop one gently."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

from tunesmith.config.errors import UserError
from tunesmith.runs.folder import RunFolder, process_start


def spawn(run: RunFolder, arguments: Sequence[str]) -> int:
    """Start ``tunesmith <arguments>`` in a session of its own, its output appended to the run's log; returns the pid.

    Closing the terminal, the browser or the page's process does not touch it. No shell is involved.
    """
    command = [sys.executable, "-m", "tunesmith", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TUNESMITH_PLAIN": "1"}
    with run.log_path.open("ab") as log:
        options: dict[str, object] = {"start_new_session": True}
        if os.name == "nt":
            options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS}  # type: ignore[attr-defined]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            **options,  # type: ignore[call-overload]
        )
    run.update_status(state="running", what="starting", pid=process.pid, pid_started=process_start(process.pid))
    return int(process.pid)


def stop(run: RunFolder, patience: float = 60.0) -> str:
    """Ask a run to stop: it saves a checkpoint first. After ``patience`` seconds it is killed; nothing saved is lost.

    Returns what happened in words. Raises UserError when the run is not running.
    """
    status = run.status()
    if not status.active or not status.pid:
        raise UserError(f"run {run.id} is not running (it is {status.state})")
    process = psutil.Process(status.pid)
    process.terminate()
    try:
        process.wait(patience)
        if run.stored_status().active:  # it was told before it could hear, while starting
            run.update_status(state="stopped", what="")
        return "stopped"
    except psutil.TimeoutExpired:
        process.kill()
        process.wait(10)
        time.sleep(0.1)
        run.update_status(state="stopped", what="")
        return f"killed after {patience:.0f} s without an answer"
