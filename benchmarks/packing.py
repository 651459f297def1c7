"""How full the bins are and how long packing takes: a million log-normal lengths, at once and streamed.

    python benchmarks/packing.py [--rows 1000000]

Lengths have a median of 120 tokens (sigma 1), as chats have; none is longer than a bin. Raw figures: benchmarks/results/packing.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import numpy as np

from tunesmith.render.packing import pack, pack_stream


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--rows", type=int, default=1_000_000)
    rows = options.parse_args().rows
    results = []
    for capacity in (512, 2048, 8192):
        drawn = np.random.default_rng(0).lognormal(np.log(120), 1.0, rows)
        lengths = np.clip(drawn, 8, capacity).astype(int)
        tokens = int(lengths.sum())
        for name, run in (("at once", pack), ("streamed", lambda *a: list(pack_stream(*a)))):
            began = time.monotonic()
            bins = len(run(lengths.tolist(), capacity))
            seconds = time.monotonic() - began
            fill = tokens / (bins * capacity)
            results.append({"capacity": capacity, "way": name, "fill": fill, "seconds": seconds})
            print(f"{capacity:>5} tokens, {name:<8}  {fill:.2%} full, {seconds:.1f} s")
    out = Path(__file__).parent / "results" / "packing.json"
    out.write_text(json.dumps({"rows": rows, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
