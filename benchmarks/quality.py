"""Every GGUF level of SmolLM2-135M-Instruct (the demo model) in one quality report: python benchmarks/quality.py [all|usual|LEVELS] [--data SET]

Trains nothing: the model as it is, or --run RUN for a run of its own. The table, picture and figures lie in the printed folder; the
Markdown goes to benchmarks/results/quality.md. On 2 cores a level takes about a minute (converting, 1 500 to 3 000 tokens, 8 answers).
"""

from __future__ import annotations

import argparse
import platform
import shutil
import time
from pathlib import Path

from tunesmith.models.devices import peak_rss, usable_cores
from tunesmith.verbs.console import console_progress
from tunesmith.verbs.export import Choice, export

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("levels", nargs="?", default="all")
    parser.add_argument("--run", default="demo", help="a run, or a model")
    parser.add_argument("--data", help="a data set to calibrate with and to measure on")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--set", action="append", default=[], help="a setting of the target, as in imatrix=off")
    parser.add_argument("--out", type=Path, help="where files go; by default with the run, or into a folder here")
    asked = parser.parse_args()
    began = time.monotonic()
    out = asked.out or (Path("quality-benchmark") if asked.run == "demo" else None)
    choice = Choice(levels=asked.levels, rows=asked.rows)
    place, words = export(
        asked.run, "gguf", console_progress(), out=out, data=asked.data, choice=choice, settings=asked.set
    )
    page = Path(words[-1].removeprefix("quality report: "))
    seconds, machine = time.monotonic() - began, f"{platform.machine()}, {usable_cores()} cores"
    RESULTS.mkdir(exist_ok=True)
    told = f"\n{asked.levels} levels of {asked.run} in {seconds:.0f} s, peak memory {peak_rss() / 2**30:.1f} GiB ({machine}).\n"
    (RESULTS / "quality.md").write_text(page.read_text(encoding="utf-8") + told, encoding="utf-8")
    shutil.copyfile(page.with_suffix(".png"), RESULTS / "quality.png")
    print(f"{place}\n{page}\n{RESULTS / 'quality.md'}{told}")


if __name__ == "__main__":
    main()
