"""Memory and time of every optimizer beside the one it stands on, over the matrices of a model of 73 million weights (16 layers).

    python benchmarks/optimizers.py [--device cuda] [--steps 5] [--layers 16] [--only muon,lion]

Every optimizer file is found by its name, with its default settings; each runs in a process of its own, turn about with its
reference, where there is one and it is installed. ``state`` is what a checkpoint holds of it (bytes per weight), ``peak`` what a step takes on
top of weights, gradients and state (bytes per weight, the most of all steps but the first), ``s/step`` the median of the steps after the
first; its ratio is the median of the ratios of neighbouring steps.
Figures: benchmarks/results/optimizers.json and .md (for another device than the CPU optimizers-DEVICE).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import psutil
import torch

from tunesmith.config.plugins import load, names
from tunesmith.train.config import OPTIMIZERS
from tunesmith.train.optimizer_state import dump
from tunesmith.train.optimizers.base import parameter_groups

WIDTH, INNER, VOCABULARY = 576, 1536, 16384
RATE = 1e-3


def torch_muon(groups: list[dict[str, Any]]) -> list[torch.optim.Optimizer]:
    """As torch's documentation says: Muon for hidden matrices, AdamW for the rest."""
    pairs = [(p, n) for group in groups for p, n in zip(group["params"], group["names"])]
    hidden = [p for p, n in pairs if p.ndim == 2 and "embed" not in n]
    rest = [p for p, n in pairs if p.ndim != 2 or "embed" in n]
    return [torch.optim.Muon(hidden, lr=RATE, adjust_lr_fn="match_rms_adamw"), torch.optim.AdamW(rest, lr=RATE)]


def from_package(module: str, name: str, **settings: Any) -> Callable[[list[dict[str, Any]]], Any]:
    """The optimizer of a library, with its own defaults but the learning rate."""

    def make(groups: list[dict[str, Any]]) -> Any:
        package = __import__(module, fromlist=[name])
        return getattr(package, name)(groups, lr=RATE, **settings)

    return make


REFERENCES: dict[str, tuple[str, Callable[[list[dict[str, Any]]], Any]]] = {
    "adamw": ("torch.optim.AdamW as it is by default", from_package("torch.optim", "AdamW")),
    "adafactor": (
        "transformers.Adafactor",
        from_package("transformers", "Adafactor", relative_step=False, warmup_init=False),
    ),
    "sgd": ("torch.optim.SGD", from_package("torch.optim", "SGD", momentum=0.9, nesterov=True)),
    "lion": ("bitsandbytes.optim.Lion", from_package("bitsandbytes.optim", "Lion")),
    "muon": ("torch.optim.Muon + AdamW", torch_muon),
    "adamw_8bit": ("bitsandbytes.optim.AdamW8bit", from_package("bitsandbytes.optim", "AdamW8bit")),
    "paged_adamw_8bit": ("bitsandbytes.optim.PagedAdamW8bit", from_package("bitsandbytes.optim", "PagedAdamW8bit")),
    "paged_adamw": ("bitsandbytes.optim.PagedAdamW", from_package("bitsandbytes.optim", "PagedAdamW")),
    "adamw_torchao": ("torchao.optim.AdamW8bit, compiled", from_package("torchao.optim", "AdamW8bit")),
    "schedule_free": ("schedulefree.AdamWScheduleFree", from_package("schedulefree", "AdamWScheduleFree")),
}
"""Kind -> what it is compared with: its name, and what makes it."""
SETTINGS: dict[str, dict[str, Any]] = {"adamw_torchao": {"compile": True}}
"""Where the default is not what the reference does."""


def weights(device: str, layers: int) -> dict[str, torch.nn.Parameter]:
    """Embeddings, and the matrices and norms of every layer; made on the device."""
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (VOCABULARY, WIDTH)}
    for i in range(layers):
        shapes |= {f"layers.{i}.{name}.weight": (WIDTH, WIDTH) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
        shapes |= {f"layers.{i}.{name}.weight": (INNER, WIDTH) for name in ("gate_proj", "up_proj")}
        shapes |= {f"layers.{i}.down_proj.weight": (WIDTH, INNER), f"layers.{i}.norm.weight": (WIDTH,)}
    torch.manual_seed(0)
    return {name: torch.nn.Parameter(0.02 * torch.randn(shape, device=device)) for name, shape in shapes.items()}


class Peak:
    """The most memory within a block above what was there at its start, in bytes."""

    def __init__(self, device: str) -> None:
        self.device, self.bytes = device, 0

    def __enter__(self) -> Peak:
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
        else:
            self._process, self._done = psutil.Process(), threading.Event()
            self._start = self._most = self._process.memory_info().rss
            self._watcher = threading.Thread(target=self._watch)
            self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self._most = max(self._most, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
            self.bytes = torch.cuda.max_memory_allocated() - self._start
        else:
            self._done.set()
            self._watcher.join()
            self.bytes = self._most - self._start


class Measured:
    """One optimizer with weights of its own, and what its steps took."""

    def __init__(self, make: Callable[[list[dict[str, Any]]], Any], device: str, layers: int) -> None:
        self.device = device
        self.named = weights(device, layers)
        made = make(parameter_groups(self.named, lr=RATE, weight_decay=0.01))
        self.optimizers = made if isinstance(made, list) else [made]
        self.seconds: list[float] = []
        self.peaks: list[int] = []

    def step(self) -> None:
        """One step, with random gradients."""
        for parameter in self.named.values():
            parameter.grad = torch.randn_like(parameter)
        with Peak(self.device) as peak:
            began = time.perf_counter()
            for optimizer in self.optimizers:
                optimizer.step()
            if self.device == "cuda":
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - began)
        self.peaks.append(peak.bytes)
        for parameter in self.named.values():
            parameter.grad = None

    def figures(self) -> dict[str, float]:
        """Per weight, and per step; the first step, which makes the state and may compile, for itself."""
        count = sum(p.numel() for p in self.named.values())
        state = sum(state_bytes(optimizer, self.named) for optimizer in self.optimizers)
        return {
            "weights": count, "state": state / count, "peak": max(self.peaks[1:]) / count, "first": self.seconds[0],
            "seconds": statistics.median(self.seconds[1:]),
        }  # fmt: skip


def measure(kind: str, device: str, steps: int, layers: int) -> dict[str, Any]:
    """An optimizer and its reference turn about in this process, so that whatever else the machine does slows both."""
    plugin = load(OPTIMIZERS, kind)
    beside, make = REFERENCES.get(kind, ("", None))
    ours = Measured(lambda groups: plugin.build(groups, plugin.Config(**SETTINGS.get(kind, {}))), device, layers)
    theirs, why = None, ""
    if make is not None:
        try:
            theirs = Measured(make, device, layers)
            if hasattr(theirs.optimizers[0], "train"):
                theirs.optimizers[0].train()
        except ImportError as error:
            why = str(error)
    for _ in range(steps + 1):
        ours.step()
        if theirs is not None:
            theirs.step()
    result: dict[str, Any] = {"kind": kind, "ours": ours.figures(), "beside": beside, "without": why}
    if theirs is not None:
        ratios = [mine / its for mine, its in zip(ours.seconds[1:], theirs.seconds[1:])]
        result |= {"reference": theirs.figures(), "ratio": statistics.median(ratios)}
    return result


def state_bytes(optimizer: torch.optim.Optimizer, named: dict[str, torch.nn.Parameter]) -> int:
    """Bytes of the state's tensors, without the weights themselves."""
    tensors, _ = dump(optimizer, named)
    return sum(value.nbytes for place, value in tensors.items() if not place.endswith("|training_weights"))


def in_own_process(kind: str, device: str, steps: int, threads: int, layers: int) -> dict[str, Any]:
    """``measure`` where nothing is left over from the one before."""
    command = [
        sys.executable,
        __file__,
        "--one",
        kind,
        "--device",
        device,
        "--steps",
        str(steps),
        "--layers",
        str(layers),
    ]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True)
    if done.returncode:
        return {"kind": kind, "error": (done.stderr.strip().splitlines() or ["died"])[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(results: list[dict[str, Any]]) -> str:
    """Markdown; ratios are ours / theirs."""
    lines = [
        "| optimizer | state, B/weight | peak, B/weight | s/step | beside | state | peak | s/step | ratio of state | ratio of s/step |",
        "|---|--:|--:|--:|---|--:|--:|--:|--:|--:|",
    ]
    for result in results:
        if "error" in result:
            lines.append(f"| {result['kind']} | {result['error']} | | | | | | | | |")
            continue
        mine, its = result["ours"], result.get("reference")
        cells = [result["kind"], *columns(mine), f"{result['beside']} {result['without']}".strip() or "–"]
        cells += columns(its) if its else [""] * 3
        cells.append(f"{mine['state'] / its['state']:.2f}" if its and its["state"] else "")
        cells.append(f"{result['ratio']:.2f}" if its else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def columns(figures: dict[str, float]) -> list[str]:
    return [f"{figures['state']:.2f}", f"{figures['peak']:.2f}", f"{figures['seconds']:.3f}"]


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--device", default="cpu")
    options.add_argument("--steps", type=int, default=5)
    options.add_argument("--layers", type=int, default=16)
    options.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="CPU threads")
    options.add_argument("--only", help="kinds, with commas between")
    options.add_argument("--one", help=argparse.SUPPRESS)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    if given.one:
        print(json.dumps(measure(given.one, given.device, given.steps, given.layers)))
        return
    results = []
    for kind in given.only.split(",") if given.only else names(OPTIMIZERS):
        results.append(in_own_process(kind, given.device, given.steps, given.threads, given.layers))
        print(table(results[-1:]).splitlines()[-1], flush=True)
    name = "optimizers" if given.device == "cpu" else f"optimizers-{given.device}"
    what = torch.cuda.get_device_name() if given.device == "cuda" else f"CPU, {given.threads} threads"
    out = Path(__file__).parent / "results"
    about = {"device": what, "torch": torch.__version__, "steps": given.steps, "layers": given.layers}
    if not given.only:
        (out / f"{name}.json").write_text(json.dumps(about | {"results": results}, indent=1) + "\n")
        (out / f"{name}.md").write_text(
            f"{what}, torch {torch.__version__}, {given.layers} layers\n\n{table(results)}\n"
        )


if __name__ == "__main__":
    main()
