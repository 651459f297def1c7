"""How far llama.cpp is from transformers, for a tiny random model of every architecture that can be exported.

    python benchmarks/gguf_families.py [--families llama,falcon] [--again]

Each model (tests/gguf_families.py: 2-4 layers, a vocabulary of 512, loud random weights) is stored in float32, exported at F32 and
F16, and compared over 200 tokens (more than any sliding window) with transformers in float32. Raw figures:
benchmarks/results/gguf_families.json, read back and continued unless --again; the table: docs/export-families.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import gguf_families
from tunesmith.config.errors import UserError
from tunesmith.export.targets import gguf

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gguf_families.json"
TABLE = ROOT / "benchmarks" / "results" / "gguf_families.md"
PAGE = ROOT / "docs" / "export-families.md"
LOUD = {"mamba": 2.0}
"""Times the usual random start; louder, what is inside this one passes the largest number of F16."""
MARKS = ("<!-- table -->", "<!-- end of table -->")
NOTES = {
    "mistral": "with a sliding window: declared as long as the window",
    "phi3": "with a sliding window: declared as long as the window",
    "starcoder2": "with a sliding window: declared as long as the window",
    "gemma2": "windows in llama.cpp; query_pre_attn_scalar must be the head's width (27B: hidden_size / heads)",
    "gemma3": "windows in llama.cpp; query_pre_attn_scalar must be the head's width (27B: hidden_size / heads)",
    "cohere": "with tied embeddings, as published",
    "smollm3": "every fourth layer without rotary positions, as published",
    "qwen3_moe": "with norm_topk_prob, as published",
    "qwen2_moe": "without norm_topk_prob, as published",
    "deepseek_v2": "with greedy routing (V2 Lite)",
    "llama4": "chunks of 8192 tokens, as published",
    "mamba": "twice as wide inside, as published; less loud here (llama.cpp rounds what enters F16 weights to F16, which ends at 65504)",
    "falcon-alibi": "llama.cpp knows Falcon with rotary positions only",
}


def measure(family: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        base, figures = gguf_families.make(Path(folder) / "model", family, loud=LOUD.get(family, 4.0)), {}
        for level in ("f32", "f16"):
            try:
                report = gguf.export(base, Path(folder) / f"{level}.gguf", gguf.Config(level=level))
                figures[level] = gguf_families.distance(base, report.out).as_dict()
            except UserError as error:
                return {"refused": error.message}
        return figures


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = ["| family | converts | mean KL F32 | F16 | top-1 F16 | notes |", "|---|---|---|---|---|---|"]
    for family in gguf_families.FAMILIES:
        found = results.get(family)
        if found is None:
            continue
        if "refused" in found:
            lines.append(f"| {family} | no | – | – | – | {NOTES.get(family, found['refused'])} |")
        else:
            kl = [f"{found[level]['mean_kl']:.1e}" for level in ("f32", "f16")]
            lines.append(
                f"| {family} | yes | {kl[0]} | {kl[1]} | {found['f16']['top1_agreement']:.3f} | {NOTES.get(family, '')} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--families", default=",".join(gguf_families.FAMILIES))
    options.add_argument("--again", action="store_true")
    chosen = options.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() and not chosen.again else {}
    for family in chosen.families.split(","):
        if family not in results:
            results[family] = measure(family)
            print(family, results[family], flush=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            TABLE.write_text(table(results))
    if PAGE.exists():
        before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
        PAGE.write_text(f"{before}{MARKS[0]}\n{table(results)}{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
