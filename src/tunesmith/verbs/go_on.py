"""A run that is there already: gone back to an earlier checkpoint, continued for longer, or begun again beside itself."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from tunesmith.config.errors import ConfigError, UserError
from tunesmith.config.files import write_atomic
from tunesmith.config.load import dump, save
from tunesmith.hub.names import check_run_point
from tunesmith.runs.folder import RunFolder, find_run
from tunesmith.verbs.run_config import TrainRun, config_of_run, load_config
from tunesmith.verbs.templates import keep_text, kept_text

CHANGES = "changes.jsonl"
"""In the run folder: one line per change of its config."""
MAY_CHANGE = (
    "epochs", "max_steps", "max_tokens", "eval_every", "save_every", "save_minutes", "keep", "keep_best", "early_stopping", "min_delta",
    "on_spike", "samples", "sample_prompts", "sample_tokens", "lr", "clip", "micro_tokens", "gradient_checkpointing", "activation_offload",
)  # fmt: skip
"""Keys of ``train`` that say how long, how often, how carefully and in how much memory the run goes on; which rows belong to which step
and what the state of the optimizer means stay as they are."""
WHY_NOT = {
    "data": "the run would go on with other rows than those it has learned from",
    "model": "what was learned belongs to the model it began with",
    "method": "the weights learned so far are those of its method",
    "stage": "what was learned so far was learned for its stage",
    "precision": "the run would go on in other numbers than it began with",
    "output": "the run has its name",
    "train.schedule": "the steps that were taken had the learning rates of its plan",
    "train.warmup": "the steps that were taken had the learning rates of its plan",
    "train.optimizer": "the optimizer's state is of its kind",
    "train.batch": "it decides which rows belong to which step",
    "train.batch_tokens": "it decides which rows belong to which step",
    "train.seed": "it decides which rows belong to which step",
}


def split_point(text: str) -> tuple[RunFolder, int | None]:
    """``RUN``, ``RUN@step-N``, ``RUN@best`` or ``RUN@last``: the run, and the step of the checkpoint that is meant (None = the newest)."""
    word, _, point = text.removeprefix("run:").rpartition("@") if "@" in text else (text.removeprefix("run:"), "", "")
    run = find_run(word)
    if not point or point == "last":
        return run, None
    check_run_point(point)
    if point == "base":
        raise UserError(
            f"{text}: the base is before the first step", hint=f"begin again with: tunesmith runs restart {word}"
        )
    folder = run.best_checkpoint() if point == "best" else run.checkpoint(int(point.removeprefix("step-")))
    return run, int(folder.name.removeprefix("step-"))


def later_checkpoints(run: RunFolder, step: int | None) -> list[int]:
    """The steps of the checkpoints that going on from ``step`` gives up."""
    return [] if step is None else [later for later in run.checkpoint_steps() if later > step]


def go_back(run: RunFolder, step: int) -> None:
    """Remove the checkpoints after ``step``; metrics after it are cut off when the run goes on. Raises UserError while it runs."""
    from tunesmith.train.checkpoint import remove
    from tunesmith.train.checkpoint_files import problem

    words = problem(run.checkpoint(step))
    if words:
        raise UserError(f"the checkpoint of step {step} is damaged: {words}; nothing was removed")
    with run.claimed("going back"):
        remove(run.checkpoints, list(reversed(later_checkpoints(run, step))))
        run.update_status(state="stopped", what="", step=step)


def continue_with(run: RunFolder, overrides: Sequence[str]) -> list[str]:
    """Change a run's config so that it goes on longer, and say what changes. It is kept in its config.yaml and in changes.jsonl.

    Raises ConfigError for keys that may not change, UserError while the run is working or when nothing is to do.
    """
    if not overrides:
        raise UserError(
            "nothing is said to change", hint=f"for example: tunesmith runs continue {run.id} train.epochs=5"
        )
    for text in overrides:
        _check_key(text)
    if not run.checkpoint_steps():
        raise UserError(f"run {run.id} has no checkpoint to continue from", hint="start a new one with tunesmith train")
    old = config_of_run(run)
    new = load_config(run.config_path, overrides)
    changes = {
        f"train.{key}": [before, now]
        for key in MAY_CHANGE
        if (before := getattr(old.train, key)) != (now := getattr(new.train, key))
    }
    if not changes:
        raise UserError(
            "these settings are what the run has already", hint="see them with: tunesmith runs show " + run.id
        )
    step, plan = run.checkpoint_steps()[-1], _planned(run, new)
    if plan is not None and plan <= step:
        raise UserError(
            f"run {run.id} is at step {step}, and with these settings it has {plan} steps: nothing is left to do",
            hint="raise train.epochs, train.max_steps or train.max_tokens",
        )
    _check_patience(run, new)
    with run.claimed("changing its config"):
        save(new, run.config_path)
        _note_change(run, step, changes)
        run.update_status(state="stopped", what="", total_steps=plan or run.stored_status().total_steps)
    said = [f"{key}: {_short(before)} -> {_short(now)}" for key, (before, now) in changes.items()]
    if plan is not None and plan != run.stored_status().step:
        said.append(
            f"from step {step + 1} on the learning rate follows the {new.train.schedule.kind} schedule over {plan} steps as if the run "
            "had been planned so"
        )
    return said


def restart(run: RunFolder) -> RunFolder:
    """A new run folder with the same config, date and template, at step 0. The old one stays as it is."""
    config = config_of_run(run)
    stem = run.id.split("-", 2)[-1] if run.id[:8].isdigit() else run.id
    new = RunFolder.create(dump(config), config.output.name or stem)
    text = kept_text(run)
    if text is not None:
        keep_text(new, text)
    return new


def _check_key(text: str) -> None:
    """Raises ConfigError unless the override's key may change."""
    key = text.partition("=")[0].strip()
    room, _, name = key.partition(".")
    if room == "train" and name in MAY_CHANGE:
        return
    listed = ", ".join(f"train.{name}" for name in MAY_CHANGE)
    why = next((words for known, words in WHY_NOT.items() if key == known or key.startswith(known + ".")), None)
    raise ConfigError(
        f"{key} cannot change in a run that has begun" + (f": {why}" if why else ""),
        hint=f"what may change: {listed}; for the rest start a new run with tunesmith train",
    )


def _planned(run: RunFolder, config: TrainRun) -> int | None:
    """All steps of the run under ``config``; None where that needs the lengths of the rows."""
    from tunesmith.train.order import Order

    loop = config.train
    if loop.batch_tokens is not None or loop.max_tokens is not None:
        return None
    try:
        rows = int(json.loads((run.path / "rows.json").read_text(encoding="utf-8"))["train"])
    except (OSError, ValueError, KeyError):
        return loop.max_steps
    return Order([1] * rows, loop.batch, loop.seed).total(loop.epochs, loop.max_steps)


def _check_patience(run: RunFolder, config: TrainRun) -> None:
    from tunesmith.train.checkpoint import read

    position = read(run.checkpoint())["position"]
    stale, patience = position.get("stale", 0), config.train.early_stopping
    if patience is not None and stale >= patience:
        raise UserError(
            f"run {run.id} stopped early: no better in {stale} evaluations, and train.early_stopping is {patience}",
            hint="add train.early_stopping=null, or a larger number",
        )


def _note_change(run: RunFolder, step: int, changes: dict[str, list[Any]]) -> None:
    place = run.path / CHANGES
    before = place.read_text(encoding="utf-8") if place.is_file() else ""
    line = json.dumps({"time": time.time(), "step": step, "changes": changes}, ensure_ascii=False)
    write_atomic(place, f"{before}{line}\n")


def _short(value: Any) -> str:
    return "none" if value is None else str(value)
