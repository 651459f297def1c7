"""Quantized bases side by side on SmolLM2-135M: bytes in memory, error, perplexity, and time of a training step.

    python benchmarks/quantized_bases.py [--steps 5] [--rows 24]

"16 bit" is the base as it is, in fp32 on a CPU (so 2.00 of 16 bit); the embeddings of the others are in the same numbers.
Error: ‖W − Ŵ‖ / ‖W‖ over all linear layers. Perplexity: learned tokens of ``lantern_bay`` with the base's own weights, fp32.
Time: the best of some LoRA steps (forward, backward; four rows of the set), as a ratio to the 16-bit base's.
HQQ is run beside plain rounding to nearest (rtn: the same storage, no solver). Raw figures: benchmarks/results/quantized_bases.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import torch

from tunesmith.data.config import DataConfig
from tunesmith.data.load import load
from tunesmith.models.devices import best_device, set_threads
from tunesmith.models.local import localize
from tunesmith.models.methods import lora
from tunesmith.models.open import open_model, open_tokenizer
from tunesmith.models.quantization import _hqq_solver, bnb, fp8, hqq
from tunesmith.models.quantization.base import size_of
from tunesmith.render.conversation import Renderer
from tunesmith.stages import sft
from tunesmith.train.evaluation import evaluate

KINDS: dict[str, Any] = {
    "16 bit": None, "bnb int8": bnb.Config(bits=8), "bnb nf4": bnb.Config(), "bnb fp4": bnb.Config(type="fp4"), "fp8": fp8.Config(),
    **{f"hqq {bits}": hqq.Config(bits=bits) for bits in (8, 4, 3, 2)},
    **{f"rtn {bits}": hqq.Config(bits=bits) for bits in (8, 4, 3, 2)},
    "hqq 4, 8-bit scales": hqq.Config(bits=4, compress_scales=True),
    "hqq 2, groups of 16": hqq.Config(bits=2, group_size=16), "rtn 2, groups of 16": hqq.Config(bits=2, group_size=16),
}  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--steps", type=int, default=5)
    options.add_argument("--rows", type=int, default=24)
    given = options.parse_args()
    set_threads()
    device, folder = best_device(), localize("demo").folder
    stage = sft.build(sft.Config(), Renderer(open_tokenizer(folder), max_length=512))
    rows = [stage.encode(e) for e in load(DataConfig(train=("lantern_bay",), eval_share=0), seed=0).train[: given.rows]]
    exact = {n: p.detach().clone() for n, p in opened(folder, device, "16 bit").named_parameters()}
    results: list[dict[str, Any]] = []
    for name in KINDS:
        began = time.monotonic()
        model = opened(folder, device, name)
        opening, size = time.monotonic() - began, size_of(model)
        wrong, perplexity = error(model, exact), math.exp(evaluate(model, stage, rows, 512, packed=False))
        seconds = step_seconds(model, stage, rows, given.steps)
        results.append({
            "base": name, "bytes": size.stored, "error": wrong, "perplexity": perplexity, "opening_s": opening, "step_s": seconds,
        })  # fmt: skip
        first = results[0]
        print(
            f"{name:<22} {size.stored / 2**20:6.0f} MiB ({size.stored / (2 * size.weights):.2f} of 16 bit)  error {wrong:.4f}  "
            f"perplexity {perplexity:8.2f} ({perplexity / first['perplexity']:.2f}x)  step {seconds / first['step_s']:.2f}x  "
            f"opened in {opening:.1f} s",
            flush=True,
        )
        del model
        gc.collect()
        out = Path(__file__).parent / "results" / "quantized_bases.json"
        figures = {"device": str(device), "threads": torch.get_num_threads(), "rows": len(rows), "results": results}
        out.write_text(json.dumps(figures, indent=1) + "\n")


def opened(folder: Path, device: torch.device, name: str) -> Any:
    """The base of that name. Embeddings and norms are fp32 in all of them; on a GPU bf16."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    if not name.startswith("rtn"):
        return open_model(folder, dtype=dtype, device=device, quantize=KINDS[name])
    solve = _hqq_solver.steps_and_zeros
    with mock.patch.object(_hqq_solver, "steps_and_zeros", lambda g, b, **_: solve(g, b, iterations=0)):
        return open_model(folder, dtype=dtype, device=device, quantize=KINDS[name])


@torch.no_grad()
def error(model: Any, exact: dict[str, torch.Tensor]) -> float:
    """‖W − Ŵ‖ / ‖W‖ over all linear layers but the output."""
    from peft.utils.integrations import dequantize_module_weight

    wrong = whole = 0.0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            weight = exact[f"{name}.weight"].float()
            wrong += float((dequantize_module_weight(module).float().view_as(weight) - weight).square().sum())
            whole += float(weight.square().sum())
    return math.sqrt(wrong / whole)


def step_seconds(model: Any, stage: Any, rows: list[Any], steps: int) -> float:
    """Seconds of the quickest step of a rank-8 LoRA on four rows: other work on the machine only ever adds time."""
    adapted = lora.apply(model, lora.Config(), base_name="benchmark").train()
    batch = stage.collate(rows[:4], packed=False)
    best = float("inf")
    for _ in range(steps):
        began = time.monotonic()
        loss = stage.loss(adapted, batch)
        (loss.total / loss.weight).backward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.monotonic() - began)
    return best


if __name__ == "__main__":
    main()
