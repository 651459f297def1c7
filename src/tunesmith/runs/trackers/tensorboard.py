"""TensorBoard event files, in the run's ``tracking/tensorboard``. Written without torch and without TensorFlow."""

from __future__ import annotations

import time
from collections.abc import Mapping

from tunesmith.runs.trackers.base import About

PACKAGE = "tensorboard"


class TensorBoard:
    """An event file; ``tensorboard --logdir <runs folder>`` shows it."""

    key = None

    def __init__(self, about: About) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.where = str(about.folder)
        self._writer = EventFileWriter(self.where, flush_secs=5)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def finish(self, state: str) -> None:
        self._writer.close()


def open(about: About) -> TensorBoard:
    """A new event file in ``about.folder``."""
    return TensorBoard(about)
