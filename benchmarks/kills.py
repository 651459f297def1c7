"""kill -9 at random moments, resume, and compare with an uninterrupted run: every method with every optimizer.

    python benchmarks/kills.py [--jobs 4] [--kills 3] [--out benchmarks/results/kills]

Each pair trains a tiny model for 8 steps on the CPU (a checkpoint every 3 steps, evaluations, dropout), once without and once with
``--kills`` SIGKILLs at random moments of the whole process: opening, encoding, steps, checkpoints. Equal means bit for bit:
weights, optimizer state, random states, counters, and every figure of the metrics but times.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "src"), str(HERE.parent / "tests")]

METHODS: dict[str, list[str]] = {
    "lora": ["method=lora", "method.rank=4", "method.dropout=0.1"],
    "lora rslora, lr_ratio": ["method=lora", "method.rslora=true", "method.lr_ratio=4"],
    "dora": ["method=lora", "method.dora=true", "method.rank=4"],
    "pissa": ["method=lora", "method.init=pissa", "method.rank=4"],
    "lora on hqq 4 bit": ["method=lora", "method.rank=4", "model.quantize=hqq"],
    "lora, new tokens": ["method=lora", "method.rank=4", "model.add_special_tokens=[<|extra|>]"],
    "oft": ["method=oft", "method.block_size=8"],
    "freeze": ["method=freeze", "method.layers=1"],
    "block expansion": ["method=freeze", "method.expand=1"],
    "full": ["method=full"],
    "full, bf16": ["method=full", "precision=bf16"],
    "full, pure bf16": ["method=full", "precision=pure_bf16"],
    "full, fp16": ["method=full", "precision=fp16"],
    "full, neftune": ["method=full", "train.neftune_alpha=5"],
}
SETTINGS = [
    "data=lantern_bay", "data.limit=24", "data.eval_share=0.1", "data.max_length=256", "data.date=2026-01-01", "train.max_steps=8",
    "train.batch=4", "train.micro_tokens=512", "train.lr=1e-3", "train.save_every=3", "train.eval_every=4", "train.seed=5",
]  # fmt: skip
IN_BACKWARD = ("adamw", "lion", "adafactor", "galore", "apollo")


def pairs() -> list[tuple[str, str, list[str]]]:
    """(method, optimizer, settings)."""
    from tunesmith.config.plugins import names
    from tunesmith.verbs.run_config import OPTIMIZERS

    found = []
    for method, settings in METHODS.items():
        precision = next((s for s in settings if s.startswith("precision=")), "precision=fp32")
        for optimizer in names(OPTIMIZERS):
            found.append((method, optimizer, [*settings, precision, f"train.optimizer={optimizer}"]))
    for optimizer in IN_BACKWARD:
        how = ["method=full", "precision=fp32", f"train.optimizer={optimizer}", "train.update_in_backward=true"]
        found.append(("full, update in backward", optimizer, [*how, "train.micro_tokens=100000"]))
    return found


def forked(work: Any) -> int:
    """``work()`` in a fork; its process id. Everything is imported already, so that a fork starts in a moment."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        work()
        code = 0
    finally:
        os._exit(code)


def outcome(run: Any) -> dict[str, Any]:
    """All that must be equal."""
    from safetensors.torch import load_file

    folder = run.checkpoint()
    tensors = {
        f"{file.name}:{key}": value
        for file in sorted(folder.glob("*.safetensors"))
        for key, value in load_file(file).items()
    }
    trainer = json.loads((folder / "trainer.json").read_text())
    trainer.pop("files", None)
    timing = {"time", "tokens_per_s", "eta_s", "memory"}
    figures = [{k: v for k, v in r.items() if k not in timing} for r in run.metrics()]
    return {"tensors": tensors, "trainer": trainer, "metrics": figures, "steps": run.checkpoint_steps()}


def equal(one: dict[str, Any], other: dict[str, Any]) -> str:
    """'' when equal, else what differs."""
    import torch

    for key in ("steps", "trainer", "metrics"):
        if one[key] != other[key]:
            return key
    if one["tensors"].keys() != other["tensors"].keys():
        return "names of tensors"
    bad = [k for k, v in one["tensors"].items() if not torch.equal(v, other["tensors"][k])]
    return f"{len(bad)} tensors, first {bad[0]}" if bad else ""


def one_pair(base: Path, work: Path, method: str, optimizer: str, settings: list[str], kills: int) -> dict[str, Any]:
    """Train without and with kills, and compare."""
    from tunesmith.config.errors import UserError
    from tunesmith.config.progress import SILENT
    from tunesmith.verbs.run_config import load_config
    from tunesmith.verbs.train import create, execute

    row: dict[str, Any] = {"method": method, "optimizer": optimizer, "kills": 0, "at": []}
    os.environ["TUNESMITH_RUNS"] = str(work / "runs")
    try:
        config = load_config(None, [f"model={base}", *SETTINGS, *settings])
        whole, killed = create(config), create(config)
    except UserError as error:
        return row | {"result": "refused", "why": error.message}
    began = time.monotonic()
    _, status = os.waitpid(forked(lambda: execute(whole, SILENT)), 0)
    took = time.monotonic() - began
    if status:
        said = whole.status().error
        expected = any(word in said for word in ("pure_bf16", "fp16", "not installed"))
        return row | {"result": "refused" if expected else "failed", "why": said[:200]}
    chance = random.Random(f"{method}/{optimizer}")
    for _ in range(kills):
        pid = forked(lambda: execute(killed, SILENT))
        time.sleep(chance.uniform(0.05, 0.95) * took)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        half = sorted(p.name for p in killed.checkpoints.glob(".*")) if killed.checkpoints.is_dir() else []
        row["at"].append(killed.metrics()[-1]["step"] if killed.metrics() else "before the first step")
        row["kills"] += 1
        row["half written"] = row.get("half written", 0) + len(half)
        if killed.status().state == "finished":
            break
    if killed.status().state != "finished":
        _, status = os.waitpid(forked(lambda: execute(killed, SILENT)), 0)
        if status:
            return row | {"result": "failed", "why": killed.status().error[:200]}
    different = equal(outcome(whole), outcome(killed))
    return row | {"result": f"differs: {different}" if different else "identical"}


def worker(share: int, jobs: int, kills: int, out: Path) -> None:
    """Every ``jobs``-th pair, a JSON line each."""
    import torch

    torch.set_num_threads(1)
    os.environ |= {"TUNESMITH_THREADS": "1", "TUNESMITH_DEVICE": "cpu", "TUNESMITH_WORKERS": "0"}
    import peft
    import transformers

    from model_fixtures import make_model
    from tunesmith.models.local import localize
    from tunesmith.train import loop
    from tunesmith.verbs import assemble

    assert peft and transformers and loop and assemble
    with tempfile.TemporaryDirectory() as work:
        base = make_model(localize("demo").folder, Path(work) / "tiny", "llama")
        with out.open("a", encoding="utf-8") as file:
            for method, optimizer, settings in pairs()[share::jobs]:
                row = one_pair(base, Path(work), method, optimizer, settings, kills)
                print(json.dumps(row), file=file, flush=True)
                print(f"{method:28} {optimizer:18} {row['result']}  {row.get('why', '')}", flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown: a row per method, a column per optimizer."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    columns = sorted({row["optimizer"] for row in rows})
    cell = {(row["method"], row["optimizer"]): row for row in rows}
    words = {"identical": "=", "refused": "–"}
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for method in methods:
        found = [cell.get((method, column)) for column in columns]
        lines.append(f"| {method} | " + " | ".join(words.get(r["result"], "**X**") if r else "" for r in found) + " |")
    kills = sum(row["kills"] for row in rows)
    same = sum(row["result"] == "identical" for row in rows)
    bad = [row for row in rows if row["result"] not in words]
    head = f"{kills} kills; {same} pairs identical, {len(bad)} not; – = refused in words."
    return "\n".join([head, "", *lines, *(f"\nX: {r['method']}, {r['optimizer']}: {r}" for r in bad)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "kills")
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    choice = parser.parse_args()
    if choice.share is not None:
        worker(choice.share, choice.jobs, choice.kills, choice.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder) / f"{i}.jsonl" for i in range(choice.jobs)]
        command = [sys.executable, __file__, "--jobs", str(choice.jobs), "--kills", str(choice.kills)]
        running = [subprocess.Popen([*command, "--share", str(i), "--out", str(part)]) for i, part in enumerate(parts)]
        for process in running:
            process.wait()
        rows = [json.loads(line) for part in parts if part.exists() for line in part.read_text().splitlines()]
    order = {(m, o): i for i, (m, o, _) in enumerate(pairs())}
    rows.sort(key=lambda row: order[row["method"], row["optimizer"]])
    choice.out.parent.mkdir(parents=True, exist_ok=True)
    choice.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    choice.out.with_suffix(".md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
