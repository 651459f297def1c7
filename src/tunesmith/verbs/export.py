"""``tunesmith export``: a run or model -> merged safetensors or GGUF, checked against what it was made from."""

from __future__ import annotations

from pathlib import Path

from tunesmith.config.errors import UserError
from tunesmith.config.plugins import load as load_plugin
from tunesmith.config.progress import Progress
from tunesmith.verbs import quantized
from tunesmith.verbs.gguf import gguf
from tunesmith.verbs.merged import TARGETS, merged_folder, place_for
from tunesmith.verbs.proof import check_parity, in_words
from tunesmith.verbs.targets import target_of


def export(
    text: str,
    to: str,
    progress: Progress,
    *,
    out: Path | None = None,
    level: str | None = None,
    base: str | None = None,
) -> tuple[Path, list[str]]:
    """Export ``text`` (a run or model) ``to`` a target. Returns where it lies and what was checked, in words.

    ``base``: the 16-bit original of a base that is stored quantized; the adapter is merged into it.
    """
    load_plugin(TARGETS, to)  # an unknown target is said before anything is downloaded
    target = quantized.on_original(target_of(text, progress), base, progress)
    if to == "hf":
        if level is not None:
            raise UserError("--level belongs to --to gguf; hf keeps the numbers of the base")
        place, report = merged_folder(target, progress, out or place_for(target, "hf"))
        assert report is not None
        return place, [f"{k}: {v}" for k, v in report.checks.items()]
    made = gguf(target, progress, level=level or "f16", out=out)
    figures = check_parity(target, [made], progress)[0]
    return made.file, [
        f"{made.report.bytes / 1e6:.0f} MB, {in_words(figures)}",
        f"Modelfile: {made.modelfile} ({made.template_reason})",
    ]
