"""Being asked to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tunesmith.config.errors import Terminated


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """SIGTERM and the first Ctrl-C ask the loop to end after the current step; a second Ctrl-C breaks off at once."""
    asked = threading.Event()

    def ask(number: int, frame: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    with _handled(ask, signal.SIGTERM, signal.SIGINT):
        yield asked.is_set


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """While nothing is there yet that could be saved, SIGTERM is what Ctrl-C is: a KeyboardInterrupt (Terminated)."""

    def interrupt(number: int, frame: object) -> None:
        raise Terminated

    with _handled(interrupt, signal.SIGTERM):
        yield


@contextmanager
def _handled(handler: Callable[[int, object], None], *numbers: signal.Signals) -> Iterator[None]:
    """Signals reach the main thread alone; in another one nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
