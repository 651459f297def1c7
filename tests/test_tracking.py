"""Trackers are told what the run folder says, once each, and cannot harm a run."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from tunesmith.cli import app
from tunesmith.config.errors import ConfigError, UserError
from tunesmith.config.load import dump
from tunesmith.config.progress import SILENT
from tunesmith.runs import tracking
from tunesmith.runs.config import TrackingConfig
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs.run_config import load_config
from tunesmith.verbs.train import create, execute


def run_with(steps: int, state: str = "finished") -> RunFolder:
    run = RunFolder.create(dump(load_config(None, ["model=demo", "data=lantern_bay"])), "tracked")
    add(run, 1, steps)
    run.update_status(state=state)
    return run


def add(run: RunFolder, first: int, last: int) -> None:
    for step in range(first, last + 1):
        run.append_metrics({"kind": "step", "step": step, "loss": 1.0 / step, "time": 5.0, "note": "words"})
        if step % 2 == 0:
            run.append_metrics({"kind": "eval", "step": step, "eval_loss": 2.0 / step})


def events(folder: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of every scalar in TensorBoard's files, in the order of their files."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = []
    for file in sorted(folder.glob("events.*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                number = value.tensor.float_val[0] if value.HasField("tensor") else value.simple_value
                found.append((value.tag, event.step, pytest.approx(number)))
    return found


@pytest.fixture(scope="module")
def tiny(tiny_of_few_words: Path) -> Path:
    return tiny_of_few_words


def test_tensorboard_gets_every_figure_once_over_an_interruption() -> None:
    run = run_with(3, "interrupted")
    config = TrackingConfig(to=("tensorboard",))
    assert tracking.track(run, config, say=lambda _: None) == []
    run.truncate_metrics(2)  # the run is resumed from step 2 and does step 3 again
    add(run, 3, 4)
    assert tracking.track(run, config, say=lambda _: None) == []
    assert events(run.path / "tracking" / "tensorboard") == [
        ("train/loss", 1, 1.0), ("train/loss", 2, 0.5), ("eval/loss", 2, 1.0), ("train/loss", 3, 1 / 3),
        ("train/loss", 4, 0.25), ("eval/loss", 4, 0.5),
    ]  # fmt: skip


class Broken:
    key, where = None, "nowhere"

    def __init__(self, when: str) -> None:
        self.when = when

    def log(self, step: int, values: Any) -> None:
        if self.when == "log" and step == 2:
            raise ConnectionError("the network is gone")

    def finish(self, state: str) -> None:
        if self.when == "finish":
            raise RuntimeError("cannot end")


@pytest.mark.parametrize("when", ["open", "log", "finish"])
def test_a_tracker_that_fails_is_told_and_the_others_go_on(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tunesmith.runs.trackers.wandb")

    def open(about: Any) -> Broken:
        if when == "open":
            raise OSError("no key")
        return Broken(when)

    module.open = open  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tunesmith.runs.trackers.wandb", module)
    run = run_with(4)
    said: list[str] = []
    assert tracking.track(run, TrackingConfig(to=("wandb", "tensorboard")), say=said.append) == ["wandb"]
    assert len(events(run.path / "tracking" / "tensorboard")) == 6
    assert any("Traceback" in line and "wandb" in line for line in said)


def test_a_training_is_followed_and_a_broken_tracker_changes_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real process beside a real training: TensorBoard gets all, a tracker that dies hard is named, the run finishes."""
    trap = tmp_path / "trap" / "wandb.py"
    trap.parent.mkdir()
    trap.write_text(
        "import os, signal\n\n\ndef init(**_):\n    os.kill(os.getpid(), signal.SIGKILL)\n\n\nSettings = dict\n"
    )
    said: list[str] = []

    class Listening(type(SILENT)):  # type: ignore[misc]
        def say(self, line: str) -> None:
            said.append(line)

    settings = [
        f"model={tiny}",
        "data=lantern_bay",
        "data.limit=8",
        "train.batch=4",
        "train.epochs=1",
        "data.eval_share=0",
    ]
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "src"))
    run = create(load_config(None, [*settings, "tracking=tensorboard"]))
    execute(run, Listening())
    losses = [r["loss"] for r in run.metrics() if r["kind"] == "step"]
    assert [v for tag, _, v in events(run.path / "tracking" / "tensorboard") if tag == "train/loss"] == losses
    assert not [line for line in said if "tracker" in line]

    monkeypatch.setenv("PYTHONPATH", f"{trap.parent}:{Path(__file__).parents[1] / 'src'}")
    monkeypatch.syspath_prepend(str(trap.parent))
    other = create(load_config(None, [*settings, "tracking=wandb"]))
    execute(other, Listening())
    assert other.status().state == "finished"
    assert [r["loss"] for r in other.metrics() if r["kind"] == "step"] == losses
    assert [line for line in said if "a tracker failed, the run did not" in line]


def test_afterwards_from_the_command_line() -> None:
    run = run_with(2)
    runner = CliRunner()
    nothing = runner.invoke(app, ["runs", "track", run.id])
    assert isinstance(nothing.exception, UserError) and "names no tracker" in str(nothing.exception)
    done = runner.invoke(app, ["runs", "track", run.id, "--to", "tensorboard"])
    assert done.exit_code == 0, done.output
    assert len(events(run.path / "tracking" / "tensorboard")) == 3


def test_wrong_names_and_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        load_config(None, ["model=demo", "data=x", "tracking=tensorbord"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="mlflow is not installed") as caught:
        tracking.check(TrackingConfig(to=("mlflow",)))
    assert "pip install 'tunesmith[mlflow]'" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["wandb", "swanlab", "mlflow", "trackio"])
def test_the_real_packages_offline(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the package is installed: opened, told and ended without network."""
    pytest.importorskip(name)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run = run_with(3)
    assert tracking.track(run, TrackingConfig(to=(name,), offline=True), say=print) == []
    assert tracking.track(run, TrackingConfig(to=(name,), offline=True), say=print) == [], "and again"
