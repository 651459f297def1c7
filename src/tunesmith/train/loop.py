"""The loop: rows -> micro-batches -> gradients -> steps, with metrics, evaluation and checkpoints in the run folder.

It knows a stage only as the protocol in ``stages.base`` and nothing of how the model was opened.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tunesmith.config.progress import SILENT, Progress
from tunesmith.models.devices import memory
from tunesmith.stages.base import lengths_of
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import Position
from tunesmith.train.evaluation import evaluate_and_record
from tunesmith.train.order import rows_of_step, steps_per_epoch, total_steps
from tunesmith.train.recording import record
from tunesmith.train.schedule import learning_rate
from tunesmith.train.setup import Setup
from tunesmith.train.signals import stop_on_signal
from tunesmith.train.step import optimizer_step


@dataclass(frozen=True)
class Outcome:
    """``finished`` is False when the run was asked to stop before its last step; a checkpoint was saved either way."""

    finished: bool
    position: Position
    total_steps: int


def train(
    setup: Setup,
    *,
    resume: tuple[Path, dict[str, torch.Tensor]] | None = None,
    progress: Progress = SILENT,
) -> Outcome:
    """Run the loop to its end, or until SIGTERM / SIGINT, and leave a checkpoint of the last step.

    ``resume``: a checkpoint folder and its fp32 parameters; the run goes on as if it had never stopped (bit for bit on
    CPU). Raises TrainingError at the first non-finite loss or when a checkpoint cannot be written.
    """
    config, run, masters, optimizer = setup.config, setup.run, setup.masters, setup.optimizer
    total = total_steps(len(setup.train), config.batch, config.epochs, config.max_steps)
    per_epoch = steps_per_epoch(len(setup.train), config.batch)
    eval_every = config.eval_every or per_epoch
    save_every = config.save_every or per_epoch
    position = Position()
    if resume is not None:
        position = checkpoint.load(resume[0], masters, optimizer, resume[1])
    run.truncate_metrics(position.step if resume is not None else -1)
    checkpoint.remove_partials(run.checkpoints)
    run.update_status(what="training", step=position.step, total_steps=total)
    lengths = lengths_of(setup.train)
    to_do = sum(
        lengths[i]
        for s in range(position.step + 1, total + 1)
        for i in rows_of_step(s, len(lengths), config.batch, config.seed)
    )
    saved = position.step if resume is not None else -1
    progress.start("training", total, "steps")
    progress.advance(position.step)
    setup.model.train()
    done_tokens, clock, last_status = 0, time.monotonic(), 0.0

    def save() -> None:
        nonlocal saved
        folder = run.checkpoints / f"step-{position.step}"
        checkpoint.save(folder, position, masters, optimizer, lambda to: setup.save_model(to, masters.state()))
        checkpoint.prune(run.checkpoints, run.checkpoint_steps(), config.keep)
        saved = position.step

    with stop_on_signal() as asked_to_stop:
        if setup.eval and position.step == 0:
            position = evaluate_and_record(setup, position)
        while position.step < total and not asked_to_stop():
            step = position.step + 1
            rate = learning_rate(step, total, config.lr, config.schedule, config.warmup)
            rows = [setup.train[i] for i in rows_of_step(step, len(setup.train), config.batch, config.seed)]
            loss, norm = optimizer_step(setup, rows, rate, step)
            tokens = sum(row.length for row in rows)
            done_tokens += tokens
            elapsed = time.monotonic() - clock
            speed = done_tokens / elapsed if elapsed > 0 else 0.0
            eta = (to_do - done_tokens) / speed if speed else 0.0
            position = replace(
                position, step=step, tokens=position.tokens + tokens, last={**position.last, "loss": loss}
            )
            scaler = masters.scaler
            if scaler and scaler.in_a_row:
                progress.say(scaler.said(step))
            record(
                run,
                {
                    "kind": "step", "step": step, "epoch": round(step / per_epoch, 4), "loss": loss, "lr": rate,
                    "grad_norm": norm if math.isfinite(norm) else None, **(scaler.figures() if scaler else {}),
                    "tokens": tokens, "tokens_per_s": round(speed, 1), "eta_s": round(eta, 1), "memory": memory(setup.device).peak,
                    "time": time.time(),
                }
            )  # fmt: skip
            progress.advance(1, f"loss {loss:.4f}  lr {rate:.2e}  {speed:.0f} tok/s")
            if setup.eval and (step % eval_every == 0 or step == total):
                before = time.monotonic()
                position = evaluate_and_record(setup, position)
                progress.say(f"step {step}/{total}  eval loss {position.last['eval_loss']:.4f}")
                clock += time.monotonic() - before
            if time.monotonic() - last_status > 0.5 or step == total:
                run.update_status(step=step, total_steps=total)
                last_status = time.monotonic()
            if step % save_every == 0 and step < total:
                before = time.monotonic()
                save()
                clock += time.monotonic() - before
        if saved != position.step:
            save()
    finished = position.step >= total
    run.update_status(step=position.step)
    progress.finish(f"step {position.step} of {total}, checkpoint {run.checkpoints / f'step-{position.step}'}")
    return Outcome(finished, position, total)
