"""What a person sees while something runs: bars on a terminal, lines elsewhere. Progress goes to stderr, data to stdout."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from tunesmith.config.progress import Progress


def console_progress() -> Progress:
    """Bars when a person watches, else plain lines (pipes, logs, ``TUNESMITH_PLAIN``)."""
    watched = sys.stderr.isatty() and not os.environ.get("TUNESMITH_PLAIN")
    return Bars() if watched else Lines()


class Lines:
    """Plain lines; a long task speaks at most every ten seconds."""

    def __init__(self, interval: float = 10.0) -> None:
        self.interval = interval
        self.task, self.total, self.unit, self.done = "", None, "", 0.0  # type: tuple[str, float | None, str, float]
        self.began = self.spoke = time.monotonic()

    def start(self, task: str, total: float | None = None, unit: str = "") -> None:
        self.task, self.total, self.unit, self.done = task, total, unit, 0.0
        self.began = self.spoke = time.monotonic()
        self.say(f"{task} …")

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.spoke < self.interval or not self.done:
            return
        self.spoke = now
        done = amount_text(self.done, self.unit if self.unit == "B" or not self.total else "")
        share = f" of {amount_text(self.total, self.unit)}" if self.total else ""
        known = self.total is not None and 0.02 * self.total <= self.done < self.total  # earlier it would be a guess
        eta = f", {duration((now - self.began) * ((self.total or 0) / self.done - 1))} left" if known else ""
        self.say(f"  {done}{share}{eta}{'  ' + note if note else ''}")

    def finish(self, note: str = "") -> None:
        self.say(f"  done in {duration(time.monotonic() - self.began)}{': ' + note if note else ''}")

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class Bars:
    """One live bar per task, with rate and time left; finished tasks leave one line."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        self.bar: Any = None
        self.task_id: Any = None
        self.began = time.monotonic()
        self.task = ""
        atexit.register(self._close)  # a command that was stopped gives the terminal back as it was

    def start(self, task: str, total: float | None = None, unit: str = "") -> None:
        from rich import progress

        self._close()
        self.task, self.began = task, time.monotonic()
        columns: list[Any] = [
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
        ]
        columns.append(progress.DownloadColumn() if unit == "B" else progress.MofNCompleteColumn())
        columns += [
            progress.TextColumn("{task.fields[note]}", style="cyan"),
            progress.TimeRemainingColumn(compact=True),
        ]
        self.bar = progress.Progress(*columns, console=self.console, transient=True)
        self.bar.start()
        self.task_id = self.bar.add_task(task, total=total, note="")

    def advance(self, amount: float = 1, note: str = "") -> None:
        if self.bar is not None:
            self.bar.update(self.task_id, advance=amount, **({"note": note} if note else {}))

    def finish(self, note: str = "") -> None:
        self._close()
        from rich.text import Text

        line = (
            Text("✓ ", style="green")
            + Text(self.task)
            + Text(f"  {duration(time.monotonic() - self.began)}", style="dim")
        )
        self.console.print(line + Text(f"  {note}" if note else "", style="dim"), soft_wrap=True)

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class Logged:
    """Passes everything on and keeps it in a log file with the time of day."""

    def __init__(self, inner: Progress, path: Path) -> None:
        self.inner, self.path, self.task = inner, path, ""
        self.total: float | None = None
        self.done = 0.0

    def start(self, task: str, total: float | None = None, unit: str = "") -> None:
        self.task, self.total, self.done = task, total, 0.0
        self._write(f"{task} …")
        self.inner.start(task, total, unit)

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount
        if note:
            share = f" {self.done:g}/{self.total:g}" if self.total else ""
            self._write(f"{self.task}{share}: {note}")
        self.inner.advance(amount, note)

    def finish(self, note: str = "") -> None:
        self._write(f"{self.task}: done{': ' + note if note else ''}")
        self.inner.finish(note)

    def say(self, line: str) -> None:
        self._write(line)
        self.inner.say(line)

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):  # a full disk: what cannot go on without it says so itself
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%H:%M:%S')}  {line}\n")


def amount_text(value: float, unit: str) -> str:
    """``12.3 MB`` for bytes, else the number and its unit."""
    if unit == "B":
        for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if value >= size:
                return f"{value / size:.1f} {name}"
        return f"{value:.0f} B"
    return f"{value:g}{' ' + unit if unit else ''}"


def duration(seconds: float) -> str:
    """``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
