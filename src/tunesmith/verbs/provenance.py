"""How a run learned what it learned, as the lines of a model card: data, method, steps and figures. No path of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.runs.folder import RunFolder
from tunesmith.verbs.run_config import TrainRun
from tunesmith.verbs.targets import Target

UNTOLD = {"kind", "start_from", "merge_first"}


def provenance(target: Target) -> list[str]:
    """The lines for what ``target`` learned; [] when it comes from no run."""
    if target.run is None or target.config is None or target.learned is None:
        return []
    step = target.learned.name.removeprefix("step-")
    until = int(step) if step.isdigit() else None
    records = [r for r in target.run.metrics() if until is None or r.get("step", 0) <= until]
    return [
        line for line in (_data(target.run, target.config), *_training(target.config, records), _loss(records)) if line
    ]


def _data(run: RunFolder, config: TrainRun) -> str:
    names = ", ".join(_name(one.set) for one in config.data.train)
    try:
        rows = json.loads((run.path / "rows.json").read_text(encoding="utf-8"))
        counts = f"{rows['train']} rows learned, {rows['eval']} held out; SHA-256 of the rows {rows['sha256']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"data: {names}"
    return f"data: {names}; {counts}"


def _name(place: str) -> str:
    """A hub's or registered name as it is; of a path only its end."""
    is_path = place.startswith(("/", "./", "../", "~")) or Path(place).expanduser().exists()
    return Path(place).name if is_path else place


def _training(config: TrainRun, records: list[dict[str, Any]]) -> list[str]:
    method, train = config.method, config.train
    given = {key: value for key, value in method.model_dump(exclude_defaults=True).items() if key not in UNTOLD}
    if hasattr(method, "rank"):
        given = {"rank": method.rank, **given}
    settings = f" ({', '.join(f'{key} {value}' for key, value in given.items())})" if given else ""
    lines = [
        f"stage {config.stage.kind}, method {method.kind}{settings}",
        f"learning rate {train.lr:g}, schedule {train.schedule.kind}, optimizer {train.optimizer.kind}, batch of {train.batch} "
        f"conversations, seed {train.seed}, precision {config.precision}",
    ]
    steps = [record for record in records if record.get("kind") == "step"]
    if steps:
        tokens, learned = (sum(int(record.get(key) or 0) for record in steps) for key in ("tokens", "learned"))
        epochs = f" ({steps[-1]['epoch']:g} epochs)" if "epoch" in steps[-1] else ""
        lines.append(f"{steps[-1]['step']} steps{epochs}, {tokens} tokens seen, {learned} of them learned")
    return lines


def _loss(records: list[dict[str, Any]]) -> str:
    found = [(r["step"], r["eval_loss"]) for r in records if r.get("kind") == "eval" and r.get("eval_loss") is not None]
    if found:
        (first, before), (last, after) = found[0], found[-1]
        if first == last:
            return f"held-out loss {after:.4f} at step {last}"
        return f"held-out loss {before:.4f} at step {first}, {after:.4f} at step {last}"
    losses = [(r["step"], r["loss"]) for r in records if r.get("kind") == "step" and r.get("loss") is not None]
    return f"training loss {losses[0][1]:.4f} at first, {losses[-1][1]:.4f} at step {losses[-1][0]}" if losses else ""
