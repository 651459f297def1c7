"""Run in a process of its own by test_resume: a tiny training that can be killed at an exact point."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tunesmith.runs.folder import RunFolder


def main(run_path: str, kill_at: str) -> None:
    """``kill_at``: ``step:N`` after the optimizer step N, ``write:N`` amid writing checkpoint N, ``rename:N`` right before
    its rename, ``metrics:N`` amid the metrics line of step N, or ``never``."""
    kind, _, number = kill_at.partition(":")
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    from tunesmith.config.progress import SILENT
    from tunesmith.train import checkpoint, loop
    from tunesmith.verbs.train import execute

    if kind == "step":
        real_step = loop.optimizer_step

        def step_then_die(setup, rows, rate, step):  # type: ignore[no-untyped-def]
            result = real_step(setup, rows, rate, step)
            return die() if step == int(number) else result

        loop.optimizer_step = step_then_die
    elif kind in ("write", "rename"):
        real_save = checkpoint.save_file if kind == "write" else checkpoint.sync_folder

        def save_then_die(*arguments):  # type: ignore[no-untyped-def]
            place = Path(arguments[-1])
            if f"step-{number}." in str(place):
                if kind == "write":
                    place.write_bytes(b"\x10half a file")
                die()
            return real_save(*arguments)

        setattr(checkpoint, "save_file" if kind == "write" else "sync_folder", save_then_die)
    elif kind == "metrics":
        real_append = RunFolder.append_metrics

        def append_then_die(self, record):  # type: ignore[no-untyped-def]
            if record["kind"] == "step" and record["step"] == int(number):
                with self.metrics_path.open("a") as file:
                    file.write('{"kind": "step", "st')
                die()
            real_append(self, record)

        RunFolder.append_metrics = append_then_die  # type: ignore[method-assign]
    execute(RunFolder(Path(run_path)), SILENT)


if __name__ == "__main__":
    main(*sys.argv[1:])
