"""The loop: rows -> micro-batches -> gradients -> steps, with metrics, evaluation and checkpoints in the run folder.

It knows a stage only as the protocol in ``stages.base`` and nothing of how the model was opened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tunesmith.config.errors import TrainingError
from tunesmith.config.progress import SILENT, Progress
from tunesmith.models.devices import memory
from tunesmith.models.flops import flops_per_token, peak_flops
from tunesmith.stages.base import Item, lengths_of
from tunesmith.train import checkpoint, guards
from tunesmith.train.evaluation import evaluate_and_record, words
from tunesmith.train.machine import machine
from tunesmith.train.meter import Meter
from tunesmith.train.order import Order
from tunesmith.train.position import Position
from tunesmith.train.profiling import profiled
from tunesmith.train.recording import forget_after, record, record_status
from tunesmith.train.resuming import resumed
from tunesmith.train.schedule import learning_rate, warmup_steps
from tunesmith.train.setup import Setup
from tunesmith.train.signals import stop_on_signal
from tunesmith.train.step import Gradients, apply, drop, gradients


@dataclass(frozen=True)
class Outcome:
    """``finished`` is False when the run was asked to stop before its last step; a checkpoint was saved either way.

    ``note``: why it ended before its last step, when that was its own decision.
    """

    finished: bool
    position: Position
    total_steps: int
    note: str = ""


def train(
    setup: Setup,
    *,
    resume: tuple[Path, dict[str, torch.Tensor]] | None = None,
    progress: Progress = SILENT,
) -> Outcome:
    """Run the loop to its end, or until SIGTERM / SIGINT, and leave a checkpoint of the last step.

    ``resume``: a checkpoint folder and its fp32 parameters; the run goes on as if it had never stopped (bit for bit on
    CPU). Raises TrainingError at the first non-finite loss, when nothing can be learned, at a spike with ``on_spike=stop``,
    and when something cannot be written.
    """
    guards.check_learning(len(setup.masters.pairs), [g.get("lr_scale", 1.0) for g in setup.optimizer.param_groups])
    position = Position()
    loop = _Loop(setup, progress)
    if resume is not None:
        position = resumed(setup, resume, loop.total, loop.machine, progress)
    forget_after(setup.run, position.step if resume is not None else -1)
    checkpoint.remove_partials(setup.run.checkpoints)
    record_status(setup.run, what="training", step=position.step, total_steps=loop.total)
    progress.start("training", loop.total, "steps")
    progress.advance(position.step)
    setup.model.train()
    profile = profiled(setup.run.artifacts / "profile", setup.config.profile, setup.device, progress)
    with stop_on_signal() as asked_to_stop, profile as loop.profiled:
        position = loop.run(position, asked_to_stop, fresh=resume is None)
    record_status(setup.run, step=position.step)
    note = early(setup, position) if position.step < loop.total else ""
    place = setup.run.checkpoints / f"step-{position.step}"
    progress.finish(f"step {position.step} of {loop.total}, checkpoint {place}{'; ' + note if note else ''}")
    return Outcome(position.step >= loop.total or bool(note), position, loop.total, note)


def early(setup: Setup, position: Position) -> str:
    """Why early stopping ends the run here; '' when it does not. Decided by the position alone, so after a crash too."""
    patience = setup.config.early_stopping
    if patience is None or position.stale < patience or position.mark is None:
        return ""
    return (
        f"stopped early: the evaluation loss has not fallen below {position.mark - setup.config.min_delta:.4f} in {position.stale} "
        f"evaluations; the best was {position.best_eval:.4f} at step {position.best_step}"
    )


class _Loop:
    """The parts of ``train`` that belong together: the plan, the meter and what is saved when."""

    def __init__(self, setup: Setup, progress: Progress) -> None:
        self.setup, self.progress, config = setup, progress, setup.config
        self.order = Order(lengths_of(setup.train), config.batch, config.seed, config.batch_tokens)
        self.total = self.order.total(config.epochs, config.max_steps, config.max_tokens)
        self.warmup = warmup_steps(config.warmup, self.total)
        self.machine = machine(setup.device, setup.dtype)
        self.meter = Meter(0)
        self.profiled: Callable[[], None] = lambda: None
        self.saved: int | None = None
        self.saved_at = self.status_at = time.monotonic()

    def run(self, position: Position, asked_to_stop: Any, *, fresh: bool) -> Position:
        """Steps until the last one, early stopping or a signal; then the last checkpoint."""
        setup, total = self.setup, self.total
        if fresh and setup.config.eval_at_start:
            position = self.evaluate(position)
        self.saved = None if fresh else position.step
        to_do = self.order.tokens(position.step, total)
        peak = peak_flops(setup.device, setup.dtype)
        self.meter = Meter(to_do, flops_per_token(setup.model) if peak else 0.0, peak)
        while position.step < total and not asked_to_stop() and not early(setup, position):
            position = self.step(position)
            self.profiled()
            with self.meter.paused():
                if self.due(setup.config.eval_every, position.step) or position.step == total:
                    position = self.evaluate(position)
                if self.save_is_due(position):
                    self.save(position)
            if time.monotonic() - self.status_at > 0.5 or position.step == total:
                record_status(setup.run, step=position.step, total_steps=total)
                self.status_at = time.monotonic()
        if self.saved != position.step:
            self.save(position)
        return position

    def step(self, position: Position) -> Position:
        """One optimizer step and its line of metrics."""
        setup, config, step = self.setup, self.setup.config, position.step + 1
        rate = learning_rate(step, self.total, config.lr, config.schedule, config.warmup)
        rows = [setup.train[i] for i in self.order.rows(step)]
        found = gradients(setup, rows, rate, step)
        spike = position.recent.spike(found.loss, found.norm) if found.finite else None
        skipped = not found.finite or (spike is not None and config.on_spike == "skip")
        recent = position.recent.after(found.loss, found.norm, spike) if found.finite else position.recent
        if setup.masters.scaler and not found.finite:
            self.progress.say(setup.masters.scaler.said(step))
        elif spike is not None:
            self.spike(spike, position.recent.spikes + 1, step, rate, rows, found)
        elif said := guards.zero_gradient(recent.zeros, step):
            self.progress.say(said)
        if skipped:
            drop(setup)
        elif not found.moved:
            apply(setup, rate)
        tokens = sum(row.length for row in rows)
        self.meter.step(tokens)
        position = replace(
            position,
            step=step,
            tokens=position.tokens + tokens,
            last={**position.last, "loss": found.loss},
            recent=recent,
        )
        self.tell(position, found, rate, tokens, sum(row.weight for row in rows), spike, skipped)
        return position

    def tell(
        self, position: Position, found: Gradients, rate: float, tokens: int, learned: float, spike: guards.Spike | None,
        skipped: bool,
    ) -> None:  # fmt: skip
        """The step's line of metrics, and the note beside the bar."""
        mfu, speed = self.meter.mfu, self.meter.speed
        line: dict[str, Any] = {
            "kind": "step", "step": position.step, "epoch": round(self.order.epoch(position.step), 4), "loss": found.loss,
            **found.metrics, "lr": rate, "grad_norm": found.norm if found.finite else None, "tokens": tokens, "learned": learned,
            "padding": round(found.padding, 4), "tokens_per_s": round(speed, 1), "eta_s": round(self.meter.seconds_left, 1),
            "memory": memory(self.setup.device).peak,
        }  # fmt: skip
        if mfu is not None:
            line["mfu"] = round(mfu, 4)
        if spike is not None:
            line |= {"spike": spike.what, "skipped": False}
        if self.setup.masters.scaler:
            line["loss_scale"] = self.setup.masters.scaler.scale
        if skipped:
            line["skipped"] = True
        record(self.setup.run, {**line, "time": time.time()})
        accuracy = f"  acc {found.metrics['accuracy']:.1%}" if "accuracy" in found.metrics else ""
        share = f"  mfu {mfu:.0%}" if mfu is not None else ""
        note = f"loss {found.loss:.4f}{accuracy}  norm {found.norm:.3g}  lr {rate:.2e}  {speed:.0f} tok/s{share}"
        self.progress.advance(1, note)

    def spike(
        self, spike: guards.Spike, in_a_row: int, step: int, rate: float, rows: Sequence[Item], found: Gradients
    ) -> None:
        """Say it, or raise TrainingError."""
        action = self.setup.config.on_spike
        done = {"warn": "the step is taken", "skip": "the step is left out", "stop": "training stopped"}[action]
        what, hint = guards.spike_words(spike, step, rate, rows, found.worst, warming_up=step <= self.warmup, done=done)
        if action == "stop":
            raise TrainingError(what, hint=f"{hint}; resuming goes on from the last checkpoint with the same rows")
        if action == "skip" and in_a_row >= guards.MOST_IN_A_ROW:
            raise TrainingError(f"{in_a_row} spikes in a row, nothing is learned any more. The last: {what}", hint=hint)
        self.progress.say(f"warning: {what}. {hint[0].upper()}{hint[1:]}")

    def evaluate(self, position: Position) -> Position:
        """Held-out rows and sample prompts, where there are some."""
        if not self.setup.eval and not self.setup.prompts:
            return position
        position = evaluate_and_record(self.setup, position)
        if said := words(self.setup, position):
            self.progress.say(f"step {position.step}/{self.total}  {said}")
        return position

    def due(self, every: int | None, step: int) -> bool:
        """After every so many steps, or at the end of each epoch."""
        return step % every == 0 if every else self.order.ends_epoch(step)

    def save_is_due(self, position: Position) -> bool:
        """Between the steps; after the last one a checkpoint is saved anyway."""
        config, step = self.setup.config, position.step
        minutes = (time.monotonic() - self.saved_at) / 60
        best = config.keep_best and position.best_step == step
        late = config.save_minutes is not None and minutes >= config.save_minutes
        return step < self.total and (self.due(config.save_every, step) or best or late)

    def save(self, position: Position) -> None:
        """A checkpoint of this step; those that are not to be kept go."""
        setup, config, run = self.setup, self.setup.config, self.setup.run
        notes = {"machine": self.machine, "total_steps": self.total}
        checkpoint.save(
            run.checkpoints / f"step-{position.step}", position, setup.masters, setup.optimizer,
            lambda to: setup.save_model(to, setup.masters.state()), notes,
        )  # fmt: skip
        best = position.best_step if config.keep_best else None
        checkpoint.prune(run.checkpoints, run.checkpoint_steps(), config.keep, best)
        self.saved, self.saved_at = position.step, time.monotonic()
