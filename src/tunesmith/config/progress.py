"""How long work says where it stands, without knowing who listens (terminal, log file, page)."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """One task at a time. ``unit`` is what ``total`` and ``advance`` count: ``"B"`` (bytes), ``"steps"``, ``"tensors"`` …"""

    def start(self, task: str, total: float | None = None, unit: str = "") -> None:
        """Begin a task; ``total`` is None when it is not known."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """``amount`` more of the current task is done; ``note`` is shown beside the bar (a loss, a file name)."""

    def finish(self, note: str = "") -> None:
        """The current task is over; ``note`` says what came out (a path, a figure)."""

    def say(self, line: str) -> None:
        """One line worth reading, beside the bar."""


class Silent:
    """A ``Progress`` that says nothing."""

    def start(self, task: str, total: float | None = None, unit: str = "") -> None: ...

    def advance(self, amount: float = 1, note: str = "") -> None: ...

    def finish(self, note: str = "") -> None: ...

    def say(self, line: str) -> None: ...


SILENT: Progress = Silent()
