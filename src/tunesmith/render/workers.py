"""A function over batches, in order: on threads of this process, and on worker processes when they pay.

While one thread renders (Python), another is in the tokenizer (Rust, which lets Python go on). Each encodes its own batch on one
core: that is measurably quicker than spreading every batch over all cores while the others wait for the results. Processes help
only where Python is what takes the time: with many cores, or with rows that must be rendered several times. Whether they
pay is measured on the first batches: what they would save must be more than what they cost to start. The results and their
order do not depend on it.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from tunesmith.config.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

BATCH = 512
"""Rows per batch: enough for the tokenizer to spread over the cores, few enough to answer Ctrl-C at once."""
START_S = 8.0
"""Seconds until a fresh process has imported transformers and opened a tokenizer (4 to 6.5 measured on 2 cores)."""
MOST_THREADS = 4
"""More find Python always taken: it needs about as long for a row as the tokenizer does."""
MOST_WORKERS = 16
_PARALLEL = "TOKENIZERS_PARALLELISM"
WORKER_BYTES = 1e9
"""Memory that a worker is counted with."""


def batched(rows: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    """Lists of ``size`` rows; the last one may be shorter."""
    source = iter(rows)
    while batch := list(islice(source, size)):
        yield batch


def in_order(
    function: Callable[[list[T]], R], batches: Iterable[list[T]], *, rows: int | None = None, workers: int | None = None
) -> Iterator[tuple[list[T], R]]:
    """Each batch with ``function(batch)``, in order; a few batches are read ahead.

    ``rows``: how many there are in all, if known. ``workers``: None = as measured, 0 = none, N = N processes from the start
    (``$TUNESMITH_WORKERS`` says the same). ``function`` must be picklable; it is sent to each worker once. What it raises
    is raised here. Raises UserError when a worker dies.
    """
    workers = _asked() if workers is None else workers
    source = iter(batches)
    if not workers:
        meter = _Meter(function)
        count = min(_cores(), MOST_THREADS)
        with _one_core_each(), ThreadPoolExecutor(count) as threads:
            for batch, result in _drained(threads, meter, source, 2 * count + 1):
                meter.done += len(batch)
                yield batch, result
                if workers is None and meter.processes_pay(rows):
                    workers = worker_count()
                    break
            else:
                return
            # What was read ahead is finished here before the processes take over.
            yield from _finish(threads, meter)
    yield from _on_processes(function, source, workers)


def worker_count() -> int:
    """Processes that this machine has cores and memory for."""
    import psutil

    return max(1, min(_cores(), MOST_WORKERS, int(psutil.virtual_memory().available / WORKER_BYTES)))


@contextmanager
def python_is_free() -> Iterator[None]:
    """Around calls that let other threads have Python meanwhile (the tokenizer's): they are not counted as Python's time."""
    before = time.thread_time()
    try:
        yield
    finally:
        _here.free = getattr(_here, "free", 0.0) + time.thread_time() - before


_here = threading.local()


@contextmanager
def _one_core_each() -> Iterator[None]:
    """The tokenizers library reads this variable at every call."""
    before = os.environ.get(_PARALLEL)
    os.environ[_PARALLEL] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PARALLEL]
        else:
            os.environ[_PARALLEL] = before


class _Meter:
    """Calls the function and measures: seconds of Python (on its thread) and of all cores, per row."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.python = 0.0
        self.began, self.cpu = time.monotonic(), time.process_time()
        self.done = 0
        self.ahead: deque[tuple[Any, Future[Any]]] = deque()
        self._lock = threading.Lock()

    def __call__(self, batch: Any) -> Any:
        before, free = time.thread_time(), getattr(_here, "free", 0.0)
        result = self.function(batch)
        spent = time.thread_time() - before - (getattr(_here, "free", 0.0) - free)
        with self._lock:
            self.python += spent
        return result

    def processes_pay(self, rows: int | None) -> bool:
        """Whether the rest takes so much longer on threads, which share one Python, that starting processes is worth it."""
        if self.done < 4 * BATCH or time.monotonic() - self.began < 1:
            return False
        remaining = (rows - self.done) if rows is not None else self.done
        return (
            _saved(remaining, self.python / self.done, (time.process_time() - self.cpu) / self.done, worker_count())
            > START_S
        )


def _saved(rows: int, python: float, cpu: float, workers: int) -> float:
    """Seconds that ``workers`` processes save over threads; ``python`` and ``cpu`` are seconds per row."""
    on_threads = max(python, cpu / max(1, _cores()))
    return rows * (on_threads - cpu * 1.1 / workers)  # a tenth for sending rows to and fro


def _drained(executor: Executor, call: Any, source: Iterator[list[T]], ahead: int) -> Iterator[tuple[list[T], Any]]:
    """Results in order with ``ahead`` batches under way. When closed early, those are left in ``call.ahead``."""
    waiting: deque[tuple[list[T], Future[Any]]] = call.ahead if isinstance(call, _Meter) else deque()
    for batch in islice(source, ahead):
        waiting.append((batch, executor.submit(call, batch)))
    while waiting:
        batch, future = waiting.popleft()
        result = future.result()
        following = next(source, None)
        if following is not None:
            waiting.append((following, executor.submit(call, following)))
        yield batch, result


def _finish(executor: Executor, meter: _Meter) -> Iterator[tuple[Any, Any]]:
    while meter.ahead:
        batch, future = meter.ahead.popleft()
        yield batch, future.result()


def _on_processes(
    function: Callable[[list[T]], R], source: Iterator[list[T]], workers: int
) -> Iterator[tuple[list[T], R]]:
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(pickle.dumps(function),)
    )
    try:
        yield from _drained(pool, _call, source, 2 * workers)
    except BrokenProcessPool as error:
        raise UserError(
            "a process that encodes rows ended unexpectedly (was it killed, or the memory full?)",
            hint="run again with TUNESMITH_WORKERS=0 to encode in one process",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_function: Callable[[Any], Any] | None = None


def _begin(pickled: bytes) -> None:
    """In a worker: Ctrl-C is the parent's to answer; the worker ends with its parent; one core each."""
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ[_PARALLEL] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _function = pickle.loads(pickled)  # noqa: S301 - made by the parent


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(batch: Sequence[Any]) -> Any:
    assert _function is not None
    return _function(batch)


def _asked() -> int | None:
    text = os.environ.get("TUNESMITH_WORKERS", "")
    if not text:
        return None
    if not text.isdigit() or int(text) > 1024:
        raise UserError(f"TUNESMITH_WORKERS is {text!r}", hint="expected a number of processes; 0 = none")
    return int(text)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
