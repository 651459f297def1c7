"""A command whose answer somebody waits for: it says where it stands, can be ended, and does not outlive the waiting."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

from tunesmith.config.errors import UserError
from tunesmith.web import commands

Answer = TypeVar("Answer")
PATIENCE = 3.0
"""Seconds between asking a process to end and ending it."""


class Cancelled(Exception):
    """The job was ended before it answered."""


class Job:
    """One process. Unlike ``commands.run`` it belongs to who waits: when the waiting ends, it ends."""

    def __init__(self, command: Sequence[str], arguments: Sequence[str]) -> None:
        self.command, self.arguments = tuple(command), tuple(arguments)
        self.began = time.monotonic()
        self._ended_at: float | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def cancelled(self) -> bool:
        return self._ended_at is not None

    async def run(
        self, read: Callable[[Path], Answer], *, answers: Collection[int] = (0,), said: Callable[[str], object] = str
    ) -> Answer:
        """Wait for the command and give what ``read`` makes of the file with its output, if its exit code is one of ``answers``
        and there is output. ``said`` is called with each new last line of its stderr.

        Raises UserError with the command's own message and hint when it failed, Cancelled after ``cancel``.
        """
        folder = Path(tempfile.mkdtemp(prefix="tunesmith-job-"))
        out, err = folder / "out", folder / "err"
        last = ""
        try:
            process = await asyncio.to_thread(commands.start, [*self.command, *self.arguments], out, err)
            self._process = process
            while process.poll() is None:
                if self._ended_at is not None:
                    _signal(process, hard=time.monotonic() - self._ended_at > PATIENCE)
                line = _last_line(err)
                if line and line != last:
                    last = line
                    said(line)
                await asyncio.sleep(0.1)
            if self.cancelled:
                raise Cancelled
            return await asyncio.to_thread(self._read, read, process.returncode, answers, out, err)
        finally:
            if self._process is not None and self._process.poll() is None:
                _signal(self._process, hard=True)
                self._process.wait()
            shutil.rmtree(folder, ignore_errors=True)

    def cancel(self) -> None:
        """End the process: politely, then not; ``run`` raises Cancelled soon after."""
        if self._ended_at is None:
            self._ended_at = time.monotonic()

    def _read(
        self, read: Callable[[Path], Answer], code: int, answers: Collection[int], out: Path, err: Path
    ) -> Answer:
        message, hint = commands.split_message(err.read_text(encoding="utf-8", errors="replace"))
        name = f"`tunesmith {' '.join(self.arguments[:2])}`"
        if code in answers and out.stat().st_size:
            try:
                return read(out)
            except ValueError as error:
                raise UserError(f"{name} did not answer as expected: {error}", hint=hint or None) from error
        if code < 0:
            message = f"{name} was ended by signal {-code}" + (f"\n{message}" if message else "")
            hint = hint or ("the machine may have run out of memory" if code == -9 else "")
        raise UserError(message or f"{name} ended with code {code}", hint=hint or None)


def _signal(process: subprocess.Popen[bytes], *, hard: bool) -> None:
    """End the process and what it started; it leads a group of its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "nt":
            process.kill() if hard else process.terminate()
        else:
            os.killpg(process.pid, signal.SIGKILL if hard else signal.SIGTERM)


def _last_line(path: Path) -> str:
    """The last line of a file that is being written, without what is overwritten (carriage returns)."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().decode("utf-8", "replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")[:300]
    return ""
