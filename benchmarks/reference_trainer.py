"""Loss curves of our loop and of transformers' Trainer with peft on the same batches: 50 steps on a CPU in fp32.

    PYTHONPATH=src:tests python benchmarks/reference_trainer.py [--steps 50]

Writes benchmarks/results/reference_trainer.json (every loss) and .md (the largest differences). Fails when one reaches 1e-5.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from families import make_family  # noqa: E402
from reference_trainer import METHODS, ours, theirs  # noqa: E402

BOUND = 1e-5
FAMILIES = ("llama", "qwen3", "gemma2")
SCHEDULES = ("constant", "cosine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    found = []
    for family, name, schedule in itertools.product(FAMILIES, METHODS, SCHEDULES):
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            base = make_family(work / "base", family)
            mine, reference = (train(base, name, steps, work, schedule) for train in (ours, theirs))
        largest = max(abs(a - b) for a, b in zip(mine, reference, strict=True))
        found.append(
            {
                "family": family,
                "method": name,
                "schedule": schedule,
                "largest_difference": largest,
                "ours": mine,
                "theirs": reference,
            }
        )
        print(
            f"{family:8} {name:8} {schedule:9} {mine[0]:.4f} -> {mine[-1]:.4f}  largest difference {largest:.1e}",
            flush=True,
        )
    versions = {package: version(package) for package in ("torch", "transformers", "peft")}
    results = HERE / "results"
    report = {"steps": steps, "versions": versions, "runs": found}
    (results / "reference_trainer.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"# Loss of every step: ours and transformers' Trainer with peft ({steps} steps, CPU, fp32)", "",
        ", ".join(f"{package} {number}" for package, number in versions.items()), "",
        "| model | method | schedule | first loss | last loss | largest difference of a step |", "|---|---|---|---|---|---|",
        *(f"| {r['family']} | {r['method']} | {r['schedule']} | {r['ours'][0]:.4f} | {r['ours'][-1]:.4f} | {r['largest_difference']:.1e} |" for r in found),
    ]  # fmt: skip
    (results / "reference_trainer.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if any(r["largest_difference"] >= BOUND for r in found):
        sys.exit(f"a difference of {BOUND} or more")


if __name__ == "__main__":
    main()
