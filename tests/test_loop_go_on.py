"""One small run through its life: evaluated by sets, sampled, finished, continued for longer, gone back, and begun again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tunesmith.cli.runs import app
from tunesmith.config.errors import ConfigError, ReferenceNotFoundError, UserError
from tunesmith.config.progress import SILENT
from tunesmith.runs.folder import RunFolder, list_runs
from tunesmith.verbs.go_on import continue_with
from tunesmith.verbs.run_config import config_of_run, load_config
from tunesmith.verbs.targets import target_of
from tunesmith.verbs.train import create, execute

SETTINGS = [
    "data=lantern_bay", "data.limit=8", "data.eval=[lantern_bay_heldout, lantern_bay]", "data.max_length=224", "method.rank=2",
    "train.epochs=1", "train.batch=4", "train.micro_tokens=256", "train.lr=5e-3", "precision=fp32", "train.save_every=1",
    "train.keep=9", "train.samples=1", "train.sample_prompts=Who are you?", "train.sample_tokens=5", "output.name=life",
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tiny_of_few_words: Path) -> Path:
    return tiny_of_few_words


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


def refused(*arguments: str) -> str:
    result = call(*arguments)
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def numbers(run: RunFolder) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in run.metrics() if r["kind"] == "step"]


def test_the_life_of_a_run(tiny: Path) -> None:
    run = execute(create(load_config(None, [f"model={tiny}", *SETTINGS])), SILENT)
    first = numbers(run)

    line = next(r for r in reversed(run.metrics()) if r["kind"] == "eval")
    assert line["sets"].keys() == {"lantern_bay_heldout", "lantern_bay"} and 0 <= line["eval_accuracy"] <= 1
    low, high = sorted(one["loss"] for one in line["sets"].values())
    assert low < line["eval_loss"] < high
    step = next(r for r in run.metrics() if r["kind"] == "step")
    assert step["learned"] < step["tokens"] and step["padding"] == 0 and "mfu" not in step and "accuracy" in step
    samples = [json.loads(text) for text in (run.artifacts / "samples.jsonl").read_text().splitlines()]
    assert [s["step"] for s in samples] == [0, 0, 2, 2] and samples[0]["prompt"] == "Who are you?"
    assert "Who are you?" not in samples[1]["prompt"] and samples[0]["text"]

    best = run.best_step()
    shown = call("show", run.id).output
    assert f"step-{best} (best)" in shown and f"best step: {best}" in shown
    assert target_of(f"run:{run.id}@best", SILENT).learned == run.checkpoint(best)

    assert "runs continue" in refused("resume", run.id) and "runs restart" in refused("resume", run.id)
    assert "nothing is left to do" in refused("continue", run.id, "train.max_steps=1")
    done = call("continue", run.id, "train.epochs=2", "train.on_spike=skip")
    assert done.exit_code == 0 and run.status().state == "finished" and run.status().step == 4
    assert "train.epochs: 1.0 -> 2.0" in done.output and "over 4 steps" in done.output
    assert "the run now has 4 steps, it was planned with 2" in run.log_tail()
    assert numbers(run)[:2] == first and config_of_run(run).train.epochs == 2
    change = json.loads((run.path / "changes.jsonl").read_text())
    assert change["step"] == 2 and change["changes"]["train.epochs"] == [1.0, 2.0]

    whole = numbers(run)
    assert "gives up step-4" in refused("resume", f"{run.id}@step-3")
    assert call("resume", f"{run.id}@step-3", "--yes").exit_code == 0
    assert numbers(run) == whole, "the steps that were done again are the same"

    again = call("restart", run.id)
    new = next(r for r in list_runs() if r.id != run.id)
    assert again.exit_code == 0 and new.config_path.read_text() == run.config_path.read_text()
    assert [step for step, _ in numbers(new)] == [1, 2, 3, 4] and numbers(new)[0] == first[0]


@pytest.mark.parametrize(
    ("override", "why"),
    [ ("data=other", "other rows"), ("method.rank=4", "its method"),
     ("train.batch=3", "which rows belong to which step"), ("nonsense=1", "what may change: train.epochs")],
)  # fmt: skip
def test_what_may_not_change_says_why(tiny: Path, override: str, why: str) -> None:
    run = RunFolder.create("model: demo\ndata: lantern_bay\n", "x")
    with pytest.raises(ConfigError) as caught:
        continue_with(run, [override])
    assert why in str(caught.value)


def test_what_cannot_be_gone_on_from(tiny: Path) -> None:
    run = RunFolder.create("model: demo\ndata: lantern_bay\n", "x")
    assert "no checkpoint to continue from" in refused("continue", run.id, "train.epochs=9")
    assert "nothing is said to change" in refused("continue", run.id)
    assert "no best checkpoint" in _best_error(run)
    folder = run.checkpoints / "step-3"
    folder.mkdir(parents=True)
    (folder / "trainer.json").write_text('{"position": {"best_step": 1}}')
    assert "was not kept" in _best_error(run)
    assert "is a checkpoint: a run goes on from its whole folder" in refused("resume", str(folder))
    assert "runs restart" in refused("resume", f"{run.id}@base")


def _best_error(run: RunFolder) -> str:
    with pytest.raises(ReferenceNotFoundError) as caught:
        run.best_checkpoint()
    return str(caught.value)
