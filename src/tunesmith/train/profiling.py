"""A few optimizer steps under torch's profiler: a trace to look at and a table of what took time and memory."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tunesmith.config.progress import SILENT, Progress

WARM_UP = 2
"""Steps that are not recorded: the first ones allocate and compile."""
ROWS = 40


@contextmanager
def profiled(
    folder: Path, steps: int, device: torch.device, progress: Progress = SILENT
) -> Iterator[Callable[[], None]]:
    """Call what is yielded after each optimizer step. ``steps``: how many are recorded (0 = none).

    Writes ``trace.json.gz`` (Chrome's trace format) and ``operations.txt`` into ``folder`` when they are done, or when the
    training ends earlier.
    """
    if not steps:
        yield lambda: None
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    done = False

    def write(profiler: torch.profiler.profile) -> None:
        nonlocal done
        done = True
        folder.mkdir(parents=True, exist_ok=True)
        plain = folder / "trace.json"
        profiler.export_chrome_trace(str(plain))
        with plain.open("rb") as source, gzip.open(folder / "trace.json.gz", "wb") as target:
            shutil.copyfileobj(source, target)
        plain.unlink()
        (folder / "operations.txt").write_text(_tables(profiler, device), encoding="utf-8")
        progress.say(f"profile of {steps} steps: {folder / 'operations.txt'}; trace.json.gz opens in ui.perfetto.dev")

    schedule = torch.profiler.schedule(wait=0, warmup=WARM_UP, active=steps, repeat=1)
    with torch.profiler.profile(
        activities=activities, schedule=schedule, on_trace_ready=write, profile_memory=True, record_shapes=True
    ) as profiler:
        yield lambda: None if done else profiler.step()


def _tables(profiler: torch.profiler.profile, device: torch.device) -> str:
    side = "cuda" if device.type == "cuda" else "cpu"
    averages = profiler.key_averages()
    parts = []
    for title, order in (("time", f"self_{side}_time_total"), ("memory", f"self_{side}_memory_usage")):
        parts += [f"By {title}", averages.table(sort_by=order, row_limit=ROWS)]
    return "\n\n".join(parts) + "\n"
