"""The loop: rows -> micro-batches -> gradients -> steps, with metrics, evaluation and checkpoints in the run folder.

It knows a stage only as the protocol in ``stages.base`` and nothing of how the model was opened.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tunesmith.config.errors import TrainingError
from tunesmith.config.progress import SILENT, Progress
from tunesmith.models.devices import memory
from tunesmith.runs.folder import RunFolder
from tunesmith.stages.base import Item, Stage, lengths_of, micro_batches
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import Position
from tunesmith.train.config import TrainConfig
from tunesmith.train.masters import Masters
from tunesmith.train.order import rows_of_step, steps_per_epoch, total_steps
from tunesmith.train.schedule import learning_rate


@dataclass(frozen=True)
class Setup:
    """What the loop works with. ``save_model(folder, fp32 state by parameter name)`` writes the learned weights."""

    model: Any
    stage: Stage
    train: Sequence[Item]
    eval: Sequence[Item]
    config: TrainConfig
    run: RunFolder
    masters: Masters
    micro_tokens: int
    save_model: Callable[[Path, dict[str, torch.Tensor]], None]


@dataclass(frozen=True)
class Outcome:
    """``finished`` is False when the run was asked to stop before its last step; a checkpoint was saved either way."""

    finished: bool
    position: Position
    total_steps: int


def optimizer_for(masters: Masters, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over the masters; vectors (norms, biases) are not decayed."""
    parameters = masters.parameters()
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=config.lr, betas=(config.beta1, config.beta2), eps=config.epsilon
    )


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
    config, run, masters = setup.config, setup.run, setup.masters
    total = total_steps(len(setup.train), config.batch, config.epochs, config.max_steps)
    per_epoch = steps_per_epoch(len(setup.train), config.batch)
    eval_every = config.eval_every or per_epoch
    save_every = config.save_every or per_epoch
    optimizer = optimizer_for(masters, config)
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

    with _stop_on_signal() as asked_to_stop:
        if setup.eval and position.step == 0:
            position = _evaluate(setup, position)
        while position.step < total and not asked_to_stop():
            step = position.step + 1
            rate = learning_rate(step, total, config.lr, config.schedule, config.warmup)
            rows = [setup.train[i] for i in rows_of_step(step, len(setup.train), config.batch, config.seed)]
            loss, norm = _step(setup, optimizer, rows, rate, step)
            tokens = sum(row.length for row in rows)
            done_tokens += tokens
            elapsed = time.monotonic() - clock
            speed = done_tokens / elapsed if elapsed > 0 else 0.0
            eta = (to_do - done_tokens) / speed if speed else 0.0
            position = replace(
                position, step=step, tokens=position.tokens + tokens, last={**position.last, "loss": loss}
            )
            _record(
                run,
                {
                    "kind": "step", "step": step, "epoch": round(step / per_epoch, 4), "loss": loss, "lr": rate, "grad_norm": norm,
                    "tokens": tokens, "tokens_per_s": round(speed, 1), "eta_s": round(eta, 1), "memory": memory(_device(setup.model)).peak,
                    "time": time.time(),
                }
            )  # fmt: skip
            progress.advance(1, f"loss {loss:.4f}  lr {rate:.2e}  {speed:.0f} tok/s")
            if setup.eval and (step % eval_every == 0 or step == total):
                before = time.monotonic()
                position = _evaluate(setup, position)
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


def _step(
    setup: Setup, optimizer: torch.optim.Optimizer, rows: Sequence[Item], rate: float, step: int
) -> tuple[float, float]:
    """One optimizer step over ``rows``; returns the mean loss and the norm of the gradient before clipping."""
    config = setup.config
    weight = sum(row.weight for row in rows)
    total = 0.0
    for members in micro_batches(rows, setup.micro_tokens, packed=config.packing):
        batch = setup.stage.collate([rows[i] for i in members], packed=config.packing)
        loss = setup.stage.loss(setup.model, batch)
        value = float(loss.total.detach())
        if not math.isfinite(value):
            raise _non_finite(value, step, rate, [rows[i] for i in members])
        (loss.total / weight).backward()
        setup.masters.collect()
        total += value
    parameters = setup.masters.parameters()
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.clip or math.inf))
    if not math.isfinite(norm):
        raise _non_finite(norm, step, rate, rows, what="gradient norm")
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    setup.masters.publish()
    return total / weight, norm


def _record(run: RunFolder, record: dict[str, Any]) -> None:
    """A line of metrics. Raises TrainingError when the disk refuses; the checkpoints before are whole."""
    try:
        run.append_metrics(record)
    except OSError as error:
        raise TrainingError(
            f"the metrics of step {record['step']} could not be written to {run.metrics_path}: {error}",
            hint="free some space and resume; the checkpoints before it are whole",
        ) from error


def _evaluate(setup: Setup, position: Position) -> Position:
    """Mean loss over the held-out rows, written to the metrics; perplexity is its exponential."""
    loss = evaluate(setup.model, setup.stage, setup.eval, setup.micro_tokens, packed=setup.config.packing)
    _record(
        setup.run,
        {
            "kind": "eval", "step": position.step, "eval_loss": loss,
            "eval_perplexity": math.exp(min(loss, 700.0)), "time": time.time(),
        }
    )  # fmt: skip
    best = loss if position.best_eval is None else min(loss, position.best_eval)
    return replace(position, best_eval=best, last={**position.last, "eval_loss": loss})


def evaluate(model: Any, stage: Stage, items: Sequence[Item], micro_tokens: int, *, packed: bool) -> float:
    """Mean loss of ``items`` (per learned token for SFT), without gradients; leaves training mode as it was."""
    was_training = model.training
    model.eval()
    total = weight = 0.0
    with torch.no_grad():
        for members in micro_batches(items, micro_tokens, packed=packed):
            loss = stage.loss(model, stage.collate([items[i] for i in members], packed=packed))
            total += float(loss.total)
            weight += loss.weight
    model.train(was_training)
    return total / weight


def _non_finite(value: float, step: int, rate: float, rows: Sequence[Item], what: str = "loss") -> TrainingError:
    origins = ", ".join(row.origin for row in rows[:3]) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")
    empty = [row.origin for row in rows if row.weight == 0]
    if empty:
        hint = f"rows without a learned token: {', '.join(empty[:3])}; `tunesmith data check` names them all"
    elif step <= 2:
        hint = "at the first steps this means broken weights or numbers too small for them: try precision=fp32, then another model file"
    else:
        hint = f"the learning rate {rate:.1e} is probably too high: resume from the last checkpoint with a smaller train.lr"
    return TrainingError(f"the {what} became {value} at step {step} (rows {origins}); training stopped", hint=hint)


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """SIGTERM and the first Ctrl-C ask the loop to end after the current step; a second Ctrl-C breaks off at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
