"""Run in a process of its own by the tests of resuming: a tiny training that can be killed at an exact point.

Several trainings share one process that has imported everything and computed nothing: each is a fork of it (a fork after the
first computation could hang in its thread pool), so that a kill costs no import. Standard input: lines ``run folder, kill point``;
standard output: one line with the exit status of each.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.runs.folder import RunFolder


def arm(kill_at: str) -> None:
    """Let this process die by SIGKILL at a point:

    ``step:N`` after the weights moved in step N; ``metrics:N`` amid the metrics line of step N; ``samples:N`` amid the samples of
    step N; ``write:N`` amid writing checkpoint N; ``record:N`` before its trainer.json; ``rename:N`` right before its rename;
    ``renamed:N`` right after it, before older ones are removed; ``prune:N`` when checkpoint N is being removed and half of it is
    gone; ``status:N`` amid writing status.json at step N or later; ``finished`` between the last checkpoint and the final status.
    ``never``: not at all.
    """
    from tunesmith.config import files
    from tunesmith.train import checkpoint, loop, recording
    from tunesmith.verbs import train as verb

    kind, _, number = kill_at.partition(":")
    at = int(number or 0)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def before(place: Any, name: str, when: Callable[..., bool], torn: Callable[..., None] | None = None) -> None:
        """Die before the call of ``place.name`` for which ``when`` is true, after the half-done work ``torn``."""
        real = getattr(place, name)

        def call(*arguments: Any, **named: Any) -> Any:
            if when(*arguments, **named):
                if torn is not None:
                    torn(*arguments, **named)
                die()
            return real(*arguments, **named)

        setattr(place, name, call)

    def is_partial(place: Path) -> bool:
        return f".step-{at}." in str(place)

    def tear_line(run: RunFolder, *_: Any) -> None:
        with run.metrics_path.open("a") as file:
            file.write('{"kind": "step", "st')

    def tear_samples(run: RunFolder, *_: Any) -> None:
        (run.artifacts / "samples.jsonl").parent.mkdir(exist_ok=True)
        with (run.artifacts / "samples.jsonl").open("a") as file:
            file.write('{"step": 3, "prompt": "half')

    def tear_status(path: Path, *_: Any) -> None:
        (path.parent / f".{path.name}.x.tmp").write_text('{"sta')

    points: dict[str, Callable[[], None]] = {
        "never": lambda: None,
        "step": lambda: before(loop._Loop, "tell", lambda self, position, *_: position.step == at),
        "metrics": lambda: before(
            RunFolder, "append_metrics", lambda self, r: r["kind"] == "step" and r["step"] == at, tear_line
        ),
        "samples": lambda: before(
            loop, "evaluate_and_record", lambda setup, p: p.step == at, lambda setup, p: tear_samples(setup.run)
        ),
        "write": lambda: before(
            checkpoint, "save_file", lambda _, to: is_partial(to), lambda _, to: to.write_bytes(b"\x10half a file") and None
        ),
        "record": lambda: before(checkpoint, "listed", is_partial),
        "rename": lambda: before(checkpoint, "sync_folder", is_partial),
        "renamed": lambda: before(checkpoint, "prune", lambda folder, steps, *_: steps[-1] == at),
        "prune": lambda: before(
            checkpoint.shutil, "rmtree", lambda place, **_: is_partial(place),
            lambda place, **_: (place / "optimizer.safetensors").unlink(),
        ),
        "status": lambda: before(
            files, "write_atomic", lambda path, text: path.name == "status.json" and f'"step": {at}' in text, tear_status
        ),
        "finished": lambda: before(recording, "record_status", lambda run, **c: "result" in c),
    }  # fmt: skip
    points[kind]()
    assert verb


def main() -> None:
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import tunesmith.train.loop
    import tunesmith.verbs.assemble
    import tunesmith.verbs.train  # noqa: F401 - all that a training imports, once
    from tunesmith.config.progress import SILENT
    from tunesmith.verbs.train import execute

    for line in sys.stdin:
        path, _, kill_at = line.strip().rpartition(" ")
        child = os.fork()
        if child == 0:
            arm(kill_at)
            execute(RunFolder(Path(path)), SILENT)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(status, flush=True)


if __name__ == "__main__":
    main()
