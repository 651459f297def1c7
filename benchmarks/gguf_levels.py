"""Every GGUF level of SmolLM2: seconds of ours and of llama.cpp's own quantizer, size, and what is lost with and without importances.

    python benchmarks/gguf_levels.py [LEVEL …] [--tokens N] [--positions N]

Writes benchmarks/results/gguf_levels.md. Ours streams from the safetensors folder (the converter's start included: "all"; "rounding"
is ggml alone on the tensors, read from the F32 file into memory); llama_model_quantize starts from an F16 file that lies there already.
KL, top-1 agreement and perplexity are against the F16 file in the same llama.cpp, on text the importances were not computed from.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
os.environ.setdefault("TUNESMITH_HOME", str(Path.home() / ".cache" / "tunesmith-tests"))

import numpy as np  # noqa: E402

from llama_oracle import quantize  # noqa: E402
from tunesmith.chat.llama_library import library  # noqa: E402
from tunesmith.chat.llamacpp import LlamaCppEngine  # noqa: E402
from tunesmith.config.errors import ExportError  # noqa: E402
from tunesmith.evaluate.parity import compare_distributions  # noqa: E402
from tunesmith.export import imatrix  # noqa: E402
from tunesmith.export.ggml_quantize import Quantizer  # noqa: E402
from tunesmith.export.gguf_levels import LEVELS  # noqa: E402
from tunesmith.export.gguf_plan import plan  # noqa: E402
from tunesmith.export.targets import gguf  # noqa: E402
from tunesmith.models.devices import usable_cores  # noqa: E402
from tunesmith.models.local import localize  # noqa: E402


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("levels", nargs="*", default=[name for name, level in LEVELS.items() if not level.direct])
    asked.add_argument("--tokens", type=int, default=16384)
    asked.add_argument("--positions", type=int, default=1000)
    args = asked.parse_args()
    from transformers import AutoTokenizer

    source = localize("demo").folder
    tokenizer = AutoTokenizer.from_pretrained(source)
    ids = tokenizer("\n".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "docs").glob("*.md")))).input_ids
    rows = [ids[i : i + 512] for i in range(0, args.tokens, 512)]
    held = ids[-args.positions - 1 :]
    assert args.tokens + args.positions < len(ids), "not so much text"
    with tempfile.TemporaryDirectory() as name:
        lines = measure(source, Path(name), args.levels, rows, held)
    out = ROOT / "benchmarks" / "results" / "gguf_levels.md"
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def measure(source: Path, work: Path, levels: list[str], rows: list[list[int]], held: list[int]) -> list[str]:
    f16 = gguf.export(source, work / "f16.gguf", gguf.Config(level="f16")).out
    f32 = gguf.export(source, work / "f32.gguf", gguf.Config(level="f32")).out
    reference, base = tell(f16, held)
    start = time.perf_counter()
    matrix = imatrix.for_export(source, work / "x.gguf", "auto", rows, work / "log", Quiet())
    assert matrix is not None
    took = time.perf_counter() - start
    means = matrix.means(plan(source, "q4_k_m", importance=True).outline.tensors)
    np.savez(work / "means.npz", **means)
    lines = [
        "# GGUF levels of SmolLM2-135M-Instruct", "",
        f"{usable_cores()} cores. Importances: {sum(map(len, rows))} tokens in {took:.0f} s. F16: perplexity {base:.2f} over {len(held) - 1} positions.", "",
        "| level | MB | ours, all (s) | rounding (s) | llama.cpp (s) | KL without | KL with | top-1 without | with | perplexity without | with |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name in levels:
        found: dict[str, Any] = {}
        for way in ("off", str(matrix.file)):
            try:
                start = time.perf_counter()
                made = gguf.export(source, work / f"{name}.gguf", gguf.Config(level=name, imatrix=way))
            except ExportError as error:
                print(name, error, file=sys.stderr)
                continue
            seconds = time.perf_counter() - start
            logprobs, perplexity = tell(made.out, held)
            found["off" if way == "off" else "on"] = (compare_distributions(reference, logprobs), perplexity)
            size = made.bytes
            made.out.unlink()
        theirs = work / "theirs.gguf"
        start = time.perf_counter()
        failed = quantize(f16, {LEVELS[name].file_type: theirs}, work / "means.npz", usable_cores())
        llama = time.perf_counter() - start
        assert not failed, failed
        theirs.unlink()
        alone = rounding(f32, plan(source, name, importance=True).types, means)
        cells = [f"{size / 1e6:.0f}", f"{seconds:.1f}", f"{alone:.1f}", f"{llama:.1f}"]
        for form in (lambda f: f"{f[0].mean_kl:.4f}", lambda f: f"{f[0].top1_agreement:.3f}", lambda f: f"{f[1]:.2f}"):
            cells += [form(found[way]) if way in found else "–" for way in ("off", "on")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def tell(file: Path, held: list[int]) -> tuple[Any, float]:
    """Log-probabilities of ``held`` and its perplexity."""
    with LlamaCppEngine(file, threads=usable_cores(), n_ctx=len(held)) as engine:
        logprobs = engine.logprobs(held)
    return logprobs, float(np.exp(-logprobs[np.arange(len(held) - 1), held[1:]].mean()))


def rounding(f32: Path, types: Any, means: Any) -> float:
    """Seconds that ggml takes for all tensors of a file that lies in memory."""
    from gguf import GGMLQuantizationType, GGUFReader

    quantizer, seconds = Quantizer(str(library()._name), usable_cores()), 0.0
    for tensor in GGUFReader(f32).tensors:
        if types[tensor.name] in ("F32", "F16"):
            continue
        kind = GGMLQuantizationType[types[tensor.name]]
        weight = np.array(tensor.data, np.float32)
        known = means.get(tensor.name)
        start = time.perf_counter()
        for _ in quantizer.blocks(weight, (kind.name, int(kind)), None if known is None else known[0]):
            pass
        seconds += time.perf_counter() - start
    return seconds


class Quiet:
    """A ``Progress`` that says nothing."""

    def start(self, task: str, total: float | None = None, unit: str = "") -> None: ...

    def advance(self, amount: float = 1, note: str = "") -> None: ...

    def finish(self, note: str = "") -> None: ...

    def say(self, line: str) -> None: ...


if __name__ == "__main__":
    main()
