"""AWQ of SmolLM2-135M side by side: with and without scaled channels, with and without searched ranges, and GPTQ on the same text.

    python benchmarks/awq.py [--tokens 8192] [--group 64] [--blocks N] [--only NAME …]

Calibration, texts and figures are those of benchmarks/gptq.py: ``own``: held-out rows of ``lantern_bay``; ``en``, ``zh``: general text that no
calibration saw. ``--blocks`` cuts the model after so many blocks: its perplexity then says nothing, its KL does.
Raw figures: benchmarks/results/awq.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from gptq import figures, prepared, shortened, show
from tunesmith.config.progress import SILENT
from tunesmith.export import awq_blocks
from tunesmith.export.targets import awq, gptq
from tunesmith.models.devices import peak_rss, set_threads
from tunesmith.models.local import localize

WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "awq": (awq, {}),
    "awq, ranges not searched": (awq, {"search": False}),
    "rounded, ranges searched": (awq, {"unscaled": True}),
    "rounded": (awq, {"unscaled": True, "search": False}),
    "gptq": (gptq, {}),
    "gptq, with zeros": (gptq, {"sym": False}),
}


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--tokens", type=int, default=8192)
    options.add_argument("--group", type=int, default=64)
    options.add_argument("--blocks", type=int)
    options.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS))
    given = options.parse_args()
    set_threads()
    folder = localize("demo").folder
    with tempfile.TemporaryDirectory() as place:
        if given.blocks is not None:
            folder = shortened(folder, Path(place) / "model", given.blocks)
        texts, rows = prepared(folder, given.tokens)
        exact: Any = {}
        results: list[dict[str, Any]] = [{"name": "16 bit", **figures(folder, texts, exact)}]
        show(results[-1])
        about = {"tokens": sum(map(len, rows)), "rows": len(rows), "group": given.group, "blocks": given.blocks}
        for name in given.only:
            target, settings = WAYS[name]
            results.append(run(folder, Path(place) / "out", target, settings, given.group, rows, texts, exact, name))
            kept = Path(__file__).parent / "results" / "awq.json"
            kept.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")


def run(
    folder: Path, out: Path, target: Any, settings: dict[str, Any], group: int, rows: Any, texts: Any, exact: Any, name: str
) -> dict[str, Any]:  # fmt: skip
    """One export, measured as our reader opens it."""
    settings, began = dict(settings), time.monotonic()
    find = (
        mock.patch.object(awq_blocks, "find", lambda *_: None) if settings.pop("unscaled", False) else mock.MagicMock()
    )
    with find:
        report = target.export(folder, out, target.Config(group_size=group, **settings), SILENT, calibration=rows)
    seconds = time.monotonic() - began
    result = {
        "name": name, "seconds": seconds, "bytes": report.bytes, "peak_rss": peak_rss(), **figures(out, texts, exact),
    }  # fmt: skip
    shutil.rmtree(out)
    show(result)
    return result


if __name__ == "__main__":
    main()
