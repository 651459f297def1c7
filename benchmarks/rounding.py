"""How much of what was learned reaches the file people run: python benchmarks/rounding.py RUN … [--levels f16,q8_0,q4_k_m] [--rows 16]

Each run is exported twice at each level: from a merge rounded to the base's own numbers (what peft's merge_and_unload writes, bit for
bit, tests/test_merge_peft.py; so do the tools that merge to 16 bits and convert that), and as `tunesmith export RUN --to gguf` does, from
the unrounded merge. Measured on the answers of held-out rows: the loss (trained model and base beside it) and the mean KL from the trained
model. "kept" is how much of what training took off the loss is left: 1 - (loss - trained) / (base - trained).
Writes benchmarks/results/rounding.md and .json.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.chat.llamacpp import LlamaCppEngine
from tunesmith.chat.transformers_engine import TransformersEngine
from tunesmith.config.progress import SILENT
from tunesmith.evaluate.parity import per_position
from tunesmith.evaluate.tasks.quality import Passage, loss_of
from tunesmith.export.targets import gguf, hf
from tunesmith.models.devices import usable_cores
from tunesmith.verbs.calibration import calibration_rows, own_text, renderer_or_tokenizer
from tunesmith.verbs.merged import merged_folder
from tunesmith.verbs.quality_texts import LONGEST, texts_of
from tunesmith.verbs.targets import Target, open_weights, renderer_of, target_of

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("runs", nargs="+")
    asked.add_argument("--levels", default="f16,q8_0,q4_k_m")
    asked.add_argument("--rows", type=int, default=16)
    args = asked.parse_args()
    found = [measure(target_of(run, SILENT), args.levels.split(","), args.rows) for run in args.runs]
    lines = [
        "# What rounding takes from what was learned", "",
        "`python benchmarks/rounding.py RUN …`: GGUF files of SmolLM2-135M-Instruct (bf16) with a LoRA, made from a merge in bf16, and as Tunesmith makes them.",
        "Loss in nats a token on the answers of held-out rows; KL from the trained model; kept: how much of what training took off the loss is left.",
        f"Machine: {platform.machine()}, {usable_cores()} cores.",
    ]  # fmt: skip
    for one in found:
        lines += [
            "", f"## {one['what']}", "",
            f"Loss of the base {one['base']['loss']:.4f}, of the trained model {one['trained']['loss']:.4f} over {one['tokens']} tokens; KL between them {one['base']['kl']:.4f}.", "",
            "| file | merged in bf16, then converted: loss | kept | KL | from the run by Tunesmith: loss | kept | KL |", "|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for level, both in one["levels"].items():
            cells = [f"{m['loss']:.4f} | {m['kept']:.0%} | {m['kl']:.4f}" for m in (both["rounded"], both["exact"])]
            lines.append(f"| {level} | {' | '.join(cells)} |")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "rounding.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (RESULTS / "rounding.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))


def measure(target: Target, levels: Sequence[str], rows: int) -> dict[str, Any]:
    assert target.learned is not None and target.config is not None, "a run is needed"
    base = replace(target, learned=None)
    exact = merged_folder(target, SILENT)
    renderer, tokenizer = renderer_or_tokenizer(target, exact)
    passages = texts_of(own_text(target, exact, SILENT), tokenizer, rows, LONGEST)[0][0].passages
    calibration = calibration_rows(target, exact, 16384, 0, None, progress=SILENT)
    trained = [
        one.copy()
        for one in _asked(TransformersEngine(open_weights(target, precision="fp32"), renderer, "trained"), passages)
    ]
    told = {
        "trained": _figures(trained, trained, passages),
        "base": _figures(
            trained,
            _asked(TransformersEngine(open_weights(base, precision="fp32"), renderer_of(base), "base"), passages),
            passages,
        ),
    }
    train = target.config.train
    found: dict[str, Any] = {
        "what": f"{target.config.stage.kind}: {train.max_steps or ''} steps, learning rate {train.lr:g}",
        "tokens": sum(len(p.positions) for p in passages), **told, "levels": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        rounded = hf.export(target.learned, Path(name) / "rounded", hf.Config(), base=target.base.folder).out
        for level in levels:
            both = {}
            for way, folder in (("rounded", rounded), ("exact", exact)):
                file = Path(name) / f"{way}.gguf"
                given = {"calibration": calibration} if gguf.calibration(gguf.Config(level=level)) else {}
                gguf.export(folder, file, gguf.Config(level=level), **given)
                engine = LlamaCppEngine(file, threads=usable_cores(), n_ctx=LONGEST)
                one = _figures(trained, _asked(engine, passages), passages)
                gained = told["base"]["loss"] - told["trained"]["loss"]
                both[way] = one | {"kept": 1 - (one["loss"] - told["trained"]["loss"]) / gained}
                for left in file.parent.glob("*.gguf"):
                    left.unlink()
            found["levels"][level] = both
            print(level, both, flush=True)
    return found


def _asked(engine: Any, passages: Sequence[Passage]) -> list[np.ndarray]:
    """The distributions at the measured positions of each passage."""
    try:
        return [np.asarray(engine.logprobs(p.ids))[p.positions].astype(np.float64) for p in passages]
    finally:
        engine.close()


def _figures(
    trained: Sequence[np.ndarray], other: Sequence[np.ndarray], passages: Sequence[Passage]
) -> dict[str, float]:
    losses = np.concatenate([loss_of(rows, p) for rows, p in zip(other, passages, strict=True)])
    kl = np.concatenate([per_position(a, b)[0] for a, b in zip(trained, other, strict=True)])
    assert math.isfinite(float(kl.mean()))
    return {"loss": float(losses.mean()), "kl": float(kl.mean())}


if __name__ == "__main__":
    main()
