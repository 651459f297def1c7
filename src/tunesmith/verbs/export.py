"""``tunesmith export``: a run or model -> a target's file or folder, checked against what it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.config.progress import Progress
from tunesmith.verbs import quantized
from tunesmith.verbs.gguf import gguf
from tunesmith.verbs.making import config_of, make, plugin_of
from tunesmith.verbs.proof import check_merge, check_parity, in_words
from tunesmith.verbs.targets import target_of


def export(
    text: str,
    to: str,
    progress: Progress,
    *,
    settings: Sequence[str] = (),
    out: Path | None = None,
    level: str | None = None,
    base: str | None = None,
    data: str | None = None,
) -> tuple[Path, list[str]]:
    """Export ``text`` (a run or model) ``to`` a target with its ``key=value`` settings. Returns where it lies and what was
    checked, in words.

    ``level``: short for ``level=…``. ``base``: the 16-bit original of a base that is stored quantized; the adapter is merged
    into it. ``data``: a set to calibrate with. Raises UserError; unknown targets and settings before anything is downloaded.
    """
    plugin = plugin_of(to)
    config = config_of(plugin, settings, level)
    target = quantized.on_original(target_of(text, progress), base, progress)
    if plugin is plugin_of("gguf"):
        one = gguf(target, progress, config=config, out=out, data=data)
        figures = check_parity(target, [one], progress)[0]
        return one.file, [
            f"{one.report.bytes / 1e6:.0f} MB, {in_words(figures)}",
            f"Modelfile: {one.modelfile} ({one.template_reason})",
        ]
    made = make(target, plugin, config, progress, out=out, data=data)
    if target.learned is not None and made.merged is None and (made.place / "config.json").is_file():
        check_merge(target, made.place, progress)
    return made.place, [*(f"{k}: {v}" for k, v in made.report.checks.items()), *made.report.notes]
