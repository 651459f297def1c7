"""GPTQ of SmolLM2-135M side by side: ours, plain rounding to nearest, and (where it is installed) GPTQModel on the same calibration.

    python benchmarks/gptq.py [--levels 4 3 2 8] [--tokens 8192] [--group 64] [--variants] [--other PYTHON] [--blocks N]

Calibration and evaluation are disjoint rows of ``lantern_bay`` with the chat template (``own``), and two bundled general texts
below (``en``, ``zh``) that no calibration saw: perplexity of all tokens but the first, and mean KL from the 16-bit model, fp32. ``--blocks``
cuts the model after so many blocks, for a machine with little time: its perplexity then says nothing, its KL does. ``--variants`` tries orders of columns and
the search for scales. ``--other``: a Python with gptqmodel, which quantizes the same rows. Raw figures: benchmarks/results/gptq.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import torch

from tunesmith.config.progress import SILENT
from tunesmith.data.config import DataConfig
from tunesmith.data.load import load
from tunesmith.export import gptq_blocks, gptq_solver
from tunesmith.export.base import size_of
from tunesmith.export.layerwise import Layerwise
from tunesmith.export.targets import gptq
from tunesmith.models.devices import best_device, peak_rss, set_threads
from tunesmith.models.local import localize
from tunesmith.models.open import open_model, open_tokenizer
from tunesmith.render.conversation import Renderer
from tunesmith.stages import sft

TEXTS = {
    "en": "The river had risen again during the night, and by morning the lower fields were under water. Two men in a small boat went from "
    "fence to fence, looking for sheep. Nobody in the village remembered a spring like this one, although the old bridge carried "
    "the marks of earlier floods, each with its year cut into the stone. When the sun came out, children stood on the wall and counted "
    "the branches, boxes and bottles that the current brought down. The miller said that the water would fall before evening, as it "
    "always had, and that one should not move the furniture for nothing. By noon he was carrying his own chairs up the stairs. "
    "A good forecast would have helped, but the nearest gauge stood thirty kilometres upstream and had been out of order since autumn.",
    "zh": "昨天夜里河水又涨了，到早晨，低处的田地已经全被淹没。两个人划着小船，沿着篱笆寻找走散的羊。村里没有人记得有过这样的春天，"
    "虽然老桥的石头上刻着从前洪水的痕迹，每一道旁边都写着年份。太阳出来以后，孩子们站在墙上，数着水里漂下来的树枝、箱子和瓶子。"
    "磨坊主说，水在天黑以前就会退，从来都是这样，不必白白搬动家具。可是到了中午，他自己也开始把椅子往楼上搬。"
    "如果有准确的预报，情况会好得多，但是最近的水位站在上游三十公里处，从去年秋天起就坏了。",
}  # fmt: skip
Exact = dict[tuple[str, int], torch.Tensor]
"""Log-probabilities [positions, vocabulary] of the 16-bit model, by text and row."""
OTHER = """
import json, os, sys
os.environ.update(GPTQMODEL_CPU_WORKERS="2", TORCHDYNAMO_DISABLE="1")
import torch
torch.set_num_threads(int(sys.argv[5]))
from gptqmodel import GPTQModel, QuantizeConfig
rows = json.load(open(sys.argv[2]))
config = QuantizeConfig(bits=int(sys.argv[4]), group_size=int(sys.argv[6]))
model = GPTQModel.load(sys.argv[1], config)
model.quantize([{"input_ids": r, "attention_mask": [1] * len(r)} for r in rows], batch_size=1)
model.save(sys.argv[3])
"""


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--levels", type=int, nargs="+", default=[8, 4, 3, 2])
    options.add_argument("--tokens", type=int, default=8192)
    options.add_argument("--group", type=int, default=64)
    options.add_argument("--variants", action="store_true")
    options.add_argument("--other", type=Path)
    options.add_argument("--blocks", type=int)
    given = options.parse_args()
    set_threads()
    folder = localize("demo").folder
    cut = tempfile.TemporaryDirectory()
    if given.blocks is not None:
        folder = shortened(folder, Path(cut.name) / "model", given.blocks)
    texts, rows = prepared(folder, given.tokens)
    exact: Exact = {}
    results = [{"name": "16 bit", **figures(folder, texts, exact)}]
    show(results[-1])
    with tempfile.TemporaryDirectory() as place:
        for bits in given.levels:
            for name, changes in variants(bits, given.group, every=given.variants).items():
                results.append(run(folder, Path(place), rows, texts, exact, name, changes))
            if given.other is not None:
                results.append(other(given.other, folder, Path(place), rows, texts, exact, bits, given.group))
    target = Path(__file__).parent / "results" / "gptq.json"
    target.write_text(
        json.dumps(
            {"tokens": sum(map(len, rows)), "rows": len(rows), "group": given.group, "results": results}, indent=1
        )
        + "\n"
    )


def prepared(folder: Path, tokens: int) -> tuple[dict[str, list[list[int]]], list[list[int]]]:
    """Texts to measure on, and other rows of ``lantern_bay`` to calibrate with, ``tokens`` of them together."""
    tokenizer = open_tokenizer(folder)
    stage = sft.build(sft.Config(), Renderer(tokenizer, max_length=512))
    encoded = [
        list(map(int, stage.encode(e).ids))
        for e in load(DataConfig(train=("lantern_bay",), eval_share=0), seed=0).train
    ]
    held, rows, used = encoded[:8], [], 0
    for row in encoded[8:]:
        rows.append(row[: tokens - used])
        used += len(rows[-1])
        if used >= tokens:
            break
    return {"own": held, **{name: [tokenizer(text).input_ids] for name, text in TEXTS.items()}}, rows


def variants(bits: int, group: int, *, every: bool) -> dict[str, dict[str, Any]]:
    """Name -> settings of the target; ``nearest`` stands for rounding without calibration."""
    base: dict[str, Any] = {"bits": bits, "group_size": group}
    found: dict[str, dict[str, Any]] = {f"{bits} ours": base, f"{bits} nearest": {**base, "nearest": True}}
    if every:
        for order in ("none", "static", "activation"):
            for search in (True, False):
                found[f"{bits} {order}{', search' if search else ''}"] = {**base, "act_order": order, "search": search}
        found[f"{bits} {'a' if bits > 3 else ''}symmetric"] = {**base, "sym": bits < 4}
        for damp in (0.003, 0.03):
            found[f"{bits} damp {damp}"] = {**base, "damp": damp}
    return found


def run(
    folder: Path, place: Path, rows: Any, texts: Any, exact: Exact, name: str, changes: dict[str, Any]
) -> dict[str, Any]:
    """One export with our solver (or rounding in its place), measured as our reader opens it."""
    out, began = place / "ours", time.monotonic()
    nearest = changes.pop("nearest", False)

    def rounding(weight: Any, hessian: Any, grid: Any, **_: Any) -> Any:
        return gptq_solver.to_nearest(weight, grid)

    def no_hessian(model: Any, i: int, linear: str, hidden: Any) -> torch.Tensor:
        return torch.eye(model.linear(i, linear).in_features, device=model.device)

    with contextlib.ExitStack() as stack:
        if nearest:  # nothing is measured then; the error below is of the weights, not of outputs
            stack.enter_context(mock.patch.object(gptq_blocks, "solve", rounding))
            stack.enter_context(mock.patch.object(Layerwise, "hessian", no_hessian))
        report = gptq.export(folder, out, gptq.Config(**changes), SILENT, calibration=rows)
    seconds = time.monotonic() - began
    result = {
        "name": name, "seconds": seconds, "bytes": report.bytes, "layer_error": report.checks["layer_error"],
        "peak_rss": peak_rss(), **figures(out, texts, exact),
    }  # fmt: skip
    shutil.rmtree(out)
    show(result)
    return result


def other(
    python: Path, folder: Path, place: Path, rows: Any, texts: Any, exact: Exact, bits: int, group: int
) -> dict[str, Any]:
    """The same rows through GPTQModel, in a process of its own."""
    out, script, data = place / "other", place / "other.py", place / "rows.json"
    script.write_text(OTHER)
    data.write_text(json.dumps(rows))
    began = time.monotonic()
    command = [
        str(python),
        str(script),
        str(folder),
        str(data),
        str(out),
        str(bits),
        str(torch.get_num_threads()),
        str(group),
    ]
    subprocess.run(command, check=True, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    result = {
        "name": f"{bits} gptqmodel",
        "seconds": time.monotonic() - began,
        "bytes": size_of(out),
        **figures(out, texts, exact),
    }
    shutil.rmtree(out)
    show(result)
    return result


def figures(folder: Path, texts: dict[str, list[list[int]]], exact: Exact) -> dict[str, float]:
    """Perplexity of each text, and mean KL from ``exact``, which the first call fills; the folder as it is stored."""
    device = best_device()
    model = open_model(folder, dtype=torch.float32, device=device)
    found = {}
    for name, rows in texts.items():
        loss, kl, count = 0.0, 0.0, 0
        for i, row in enumerate(rows):
            ids = torch.tensor([row], device=device)
            with torch.no_grad():
                logs = model(ids).logits[0, :-1].log_softmax(-1)
            first = exact.setdefault((name, i), logs)
            loss -= float(logs.gather(1, ids[0, 1:, None]).sum())
            kl += float((first.exp() * (first - logs)).sum())
            count += len(row) - 1
        found |= {name: math.exp(loss / count), f"{name} KL": kl / count}
    return found


def shortened(folder: Path, out: Path, blocks: int) -> Path:
    """A copy of the model in ``folder`` that ends after so many blocks."""
    model = open_model(folder, dtype=torch.float32, device=torch.device("cpu"), attention="sdpa")
    del model.model.layers[blocks:]
    model.config.num_hidden_layers = blocks
    model.config.layer_types = None
    model.save_pretrained(out)
    for file in folder.iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copyfile(file, out / file.name)
    return out


def show(result: dict[str, Any]) -> None:
    """One line."""
    print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else str(v) for k, v in result.items()), flush=True)


if __name__ == "__main__":
    main()
