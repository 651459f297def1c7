"""kill -9 at any moment, resume, and the weights are bit for bit those of an uninterrupted run."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tunesmith.config.errors import TrainingError, UserError
from tunesmith.config.load import dump
from tunesmith.config.progress import SILENT
from tunesmith.runs.folder import RunFolder
from tunesmith.train import checkpoint
from tunesmith.verbs.run_config import load_config
from tunesmith.verbs.train import create, execute

HERE = Path(__file__).parent
KILLS = [
    ["step:1", "write:3", "rename:3", "renamed:4", "prune:3", "step:8", "finished"],
    ["metrics:4", "samples:4", "record:4", "step:5", "rename:6", "status:8"],
]
"""Each list is one run, killed again and again before it is let go to its end (``train_process.arm`` tells the points)."""
SETTINGS = [
    "data=lantern_bay", "data.limit=18", "data.eval_share=0.1", "data.max_length=256", "method.rank=4", "method.dropout=0.1",
    "train.epochs=2", "train.batch=4", "train.micro_tokens=256", "train.lr=5e-3", "train.save_every=3", "train.keep=2", "data.date=2026-01-01",
    "train.samples=1", "train.sample_tokens=4", "train.early_stopping=9", "train.on_spike=skip",
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tiny_of_few_words: Path) -> Path:
    return tiny_of_few_words


def new_run(tiny: Path, precision: str) -> RunFolder:
    return create(load_config(None, [f"model={tiny}", *SETTINGS, f"precision={precision}", "output.name=kill"]))


def work(run: RunFolder) -> None:
    """Train to the end in this process."""
    execute(run, SILENT)


@pytest.fixture(scope="module")
def forks() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported everything and trains in forks of itself."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src")}
    command = [sys.executable, str(HERE / "train_process.py")]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def killed(forks: subprocess.Popen[str], run: RunFolder, kill_at: str) -> None:
    """Train in a process that is killed by SIGKILL at that point."""
    assert forks.stdin is not None and forks.stdout is not None
    print(run.path, kill_at, file=forks.stdin, flush=True)
    assert os.WTERMSIG(int(forks.stdout.readline())) == signal.SIGKILL, (
        f"{kill_at}: {run.status().error or 'not reached'}"
    )
    assert run.status().state == "interrupted"


@pytest.fixture(scope="module")
def uninterrupted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    root = tmp_path_factory.mktemp("whole")
    made = {}
    for precision in ("fp32", "bf16"):
        config = load_config(None, [f"model={tiny}", *SETTINGS, f"precision={precision}", "output.name=whole"])
        made[precision] = RunFolder.create(dump(config), f"whole-{precision}", root)
        work(made[precision])
    return made


def samples(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.artifacts / "samples.jsonl").read_text().splitlines()]


def assert_same(found: RunFolder, expected: RunFolder) -> None:
    assert found.status().state == "finished"
    assert found.checkpoint_steps() == expected.checkpoint_steps()
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        mine, theirs = load_file(found.checkpoint() / name), load_file(expected.checkpoint() / name)
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert torch.equal(mine[key], theirs[key]), f"{name}: {key} differs"
    trainer = [json.loads((r.checkpoint() / "trainer.json").read_text()) for r in (found, expected)]
    for one in trainer:
        one.pop("files")  # adapter_config.json lists the targets in any order
    assert trainer[0] == trainer[1]
    assert samples(found) == samples(expected) and [line["step"] for line in samples(found)] == [0, 4, 8]
    assert found.status().result == expected.status().result
    figures = [
        [(r["kind"], r["step"], r.get("loss", r.get("eval_loss"))) for r in run.metrics()] for run in (found, expected)
    ]
    assert figures[0] == figures[1], "a step is missing, doubled or different in the metrics"
    assert not list(found.checkpoints.glob(".*")), "something half-written was left behind"


@pytest.mark.parametrize("kills", KILLS, ids=" ".join)
def test_killed_and_resumed(
    tiny: Path, uninterrupted: dict[str, RunFolder], forks: subprocess.Popen[str], kills: list[str]
) -> None:
    run = new_run(tiny, "fp32")
    for kill_at in kills:
        killed(forks, run, kill_at)
    work(run)
    assert_same(run, uninterrupted["fp32"])


def test_killed_three_times_in_bf16(
    tiny: Path, uninterrupted: dict[str, RunFolder], forks: subprocess.Popen[str]
) -> None:
    run = new_run(tiny, "bf16")
    for kill_at in ("step:4", "write:6", "step:8"):
        killed(forks, run, kill_at)
    work(run)
    assert_same(run, uninterrupted["bf16"])


def test_a_signal_saves_and_stops(
    tiny: Path, uninterrupted: dict[str, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it prepares, a run is stopped at once; in the middle of step 2, after that step with a checkpoint of it."""
    from tunesmith.train import loop
    from tunesmith.verbs import assemble

    run = new_run(tiny, "fp32")
    with monkeypatch.context() as patch:
        patch.setattr(assemble, "encode", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            work(run)
    assert run.status().state == "stopped" and not run.checkpoint_steps()
    real = loop.apply

    def signalled(setup: Any, rate: float) -> None:
        if len([r for r in run.metrics() if r["kind"] == "step"]) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        real(setup, rate)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "apply", signalled)
        work(run)
    assert run.status().state == "stopped" and run.status().step == 2 and run.checkpoint_steps() == [2]
    work(run)
    assert_same_weights(run, uninterrupted["fp32"])


def assert_same_weights(found: RunFolder, expected: RunFolder) -> None:
    mine, theirs = (load_file(r.checkpoint() / "adapter_model.safetensors") for r in (found, expected))
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)


def test_a_full_disk_loses_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing the second checkpoint fails as a full disk does: the first stays, the message says so, resuming works."""
    run = new_run(tiny, "fp32")
    real = checkpoint.save_file

    def full(tensors, place):  # type: ignore[no-untyped-def]
        """The operating system refuses to let the file grow: the library's own error, whatever its type is."""
        if "step-6." not in str(place):
            return real(tensors, place)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            real(tensors, place)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(
        TrainingError, match=r"checkpoint of step 6 could not be written[\s\S]*File too large[\s\S]*are whole"
    ):
        execute(run, SILENT)
    assert (
        run.checkpoint_steps() == [3, 4] and run.status().state == "failed" and "File too large" in run.status().error
    )
    monkeypatch.undo()
    monkeypatch.setenv("TUNESMITH_RUNS", str(run.path.parent))
    execute(run, SILENT)
    assert run.status().state == "finished"


def test_two_processes_never_work_on_one_run(tiny: Path) -> None:
    run = new_run(tiny, "fp32")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        from tunesmith.runs.folder import process_start

        run.update_status(state="running", pid=other.pid, pid_started=process_start(other.pid))
        with pytest.raises(UserError, match=f"process {other.pid}"):
            run.claim("training")
        other.kill()
        other.wait()
    assert run.status().state == "interrupted"
    with run.claimed("training"):  # two that start in the same moment: the lock decides
        code = "import sys; from pathlib import Path; from tunesmith.runs.folder import RunFolder\n"
        code += "with RunFolder(Path(sys.argv[1])).claimed('training'): print('claimed')"
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src")}
        second = subprocess.run(
            [sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, env=environment
        )
        assert "is being worked on" in second.stderr and "claimed" not in second.stdout
