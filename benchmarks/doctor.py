"""How long `tunesmith data check` takes for a million rows, and how much memory: without a model, and with one.

    python benchmarks/doctor.py [--rows 1000000] [--model demo]

The rows are made up: short chats of 2 to 6 turns, one in fifty a copy, one in fifty a copy with one word changed, one in a
hundred with something wrong. Needs 400 MB of disk in the temporary folder. Prints a table; times nothing else at once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = [
    "the",
    "of",
    "river",
    "lantern",
    "tide",
    "boat",
    "harbour",
    "keeper",
    "light",
    "bell",
    "stone",
    "fish",
    "wind",
    "rope",
    "gull",
    "morning",
    "night",
    "captain",
    "island",
    "water",
    "salt",
    "map",
    "door",
    "key",
    "house",
    "灯塔",
    "港口",
    "潮水",
    "渔船",
    "夜晚",
    "清晨",
    "船长",
    "岛屿",
]


def sentence(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(WORDS, k=words)).capitalize() + "."


def write_rows(path: Path, count: int) -> None:
    chance = random.Random(0)
    before: list[dict[str, str]] = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            turns = [
                {"role": "assistant" if i % 2 else "user", "content": sentence(chance, 18 if i % 2 else 9)}
                for i in range(2 * chance.choice((1, 1, 1, 2, 3)))
            ]
            if number % 50 == 1:
                turns = before
            elif number % 50 == 2:
                turns = [*before[:-1], {**before[-1], "content": before[-1]["content"].replace("the", "a", 1)}]
            elif number % 100 == 3:
                turns[-1]["content"] += chance.choice(
                    (" &nbsp;", " cafÃ©", "\u200b", " As an AI language model", "<|im_end|>")
                )
            before = turns
            file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")


def run(*arguments: str) -> tuple[float, float, float]:
    """Seconds by the clock, seconds of the processor (what counts on a busy machine), largest resident memory in MB."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "tunesmith", "data", "check", *arguments],
        stdout=sys.stderr,
        env={**os.environ, "TUNESMITH_PLAIN": "1"},
    )
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 2):
        raise SystemExit(f"data check ended with {os.waitstatus_to_exitcode(status)}")
    computed = usage.ru_utime + usage.ru_stime
    return time.monotonic() - began, computed, usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--model", default="demo")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, options.rows)
        size = path.stat().st_size / 1e6
        print(f"{options.rows:,} rows, {size:.0f} MB")
        print("| | seconds | CPU seconds | rows per CPU second | peak MB |\n|---|---|---|---|---|")
        for name, extra in (("without a model", []), (f"with {options.model}", ["--model", options.model])):
            seconds, computed, memory = run(str(path), *extra)
            print(
                f"| {name} | {seconds:.0f} | {computed:.0f} | {options.rows / computed:,.0f} | {memory:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
