"""The processes that llama.cpp's converter runs in: a new one for each job, or where forking is safe (Linux) a fork of a warm one.

The warm process has imported torch and the converter, which takes seconds and longer than converting a small model, and does nothing else; it is started
by the first job and ends with this process. A job lives and dies alone either way.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Protocol

SCRIPT = Path(__file__).with_name("convert_process.py")
FORKS = sys.platform == "linux"


class Job(Protocol):
    """One run of the converter. ``returncode``: None while it runs, negative when a signal ended it."""

    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def kill(self) -> None: ...


def start(job: Path, converter: Path, environment: dict[str, str], log: Path) -> Job:
    """Run the file ``job`` (see convert_process.py) in its folder. ``log`` receives what the process says; it is emptied first."""
    global _warm
    log.write_bytes(b"")
    if FORKS:
        with _lock:
            if _warm is None or not _warm.serves(converter):
                stop()
                _warm = Warm(converter, environment, log)
            if not _warm.busy:  # another thread's job: this one gets a process of its own
                return _warm.order(job, environment, log)
    with log.open("ab") as output:
        # -P: neither the script's folder nor the working folder is searched for modules
        return subprocess.Popen(
            [sys.executable, "-P", str(SCRIPT), str(job)], cwd=job.parent, env=environment, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT,
        )  # fmt: skip


def stop() -> None:
    """End the warm process, if there is one."""
    global _warm
    if _warm is not None:
        _warm.close()
        _warm = None


class Warm:
    """A process that has the converter loaded and forks for each job."""

    def __init__(self, converter: Path, environment: dict[str, str], log: Path) -> None:
        self.converter, self.owner, self.busy = converter, os.getpid(), False
        # OpenBLAS would start its threads when numpy is imported, and a process with threads is not safe to fork
        environment = environment | {"OPENBLAS_NUM_THREADS": "1"}
        with log.open("ab") as output:  # where it is told when the converter cannot even be loaded
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(SCRIPT), "serve", str(converter)], cwd=SCRIPT.anchor, env=environment, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=output, bufsize=0,
            )  # fmt: skip

    def serves(self, converter: Path) -> bool:
        """Whether it is there, of this process (not of one that this was forked from), and has this converter."""
        return self.owner == os.getpid() and self.converter == converter and self.process.poll() is None

    def order(self, job: Path, environment: dict[str, str], log: Path) -> Job:
        told = {"job": str(job), "folder": str(job.parent), "environment": environment, "log": str(log.absolute())}
        self.busy = True
        self.say(json.dumps(told))
        return Forked(self)

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line.encode() + b"\n")
        except BrokenPipeError:
            pass  # it has ended, which the answer tells

    def answer(self, seconds: float | None) -> int | None:
        """The exit code of the running job, waiting ``seconds`` for it; that of the process itself when it has ended."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            return None
        self.busy = False
        line = self.process.stdout.readline()
        return int(line) if line else self.process.wait() or 1

    def close(self) -> None:
        if self.owner == os.getpid():
            self.process.kill()  # a fork of it sees that its parent is gone
            self.process.communicate()


class Forked:
    """A job in a fork of the warm process."""

    def __init__(self, warm: Warm) -> None:
        self.warm = warm
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.warm.answer(0)
        return self.returncode

    def wait(self) -> int:
        while self.returncode is None:
            self.returncode = self.warm.answer(None)
        return self.returncode

    def kill(self) -> None:
        self.warm.say("stop")


_warm: Warm | None = None
_lock = threading.Lock()
atexit.register(stop)
