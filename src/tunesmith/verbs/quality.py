"""The quality report of exports: measured in their own engines against the merged 16-bit model, kept with the run.

What was measured lies in ``results/`` of the report's folder, one file for each export, under a key of all that decides it: an
interrupted report goes on, and later exports of the same model join the same table.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psutil

from tunesmith.config.errors import ExportError, UserError
from tunesmith.config.files import write_atomic, write_json
from tunesmith.config.progress import Progress
from tunesmith.evaluate.quality_report import QualityReport, plain
from tunesmith.evaluate.tasks.quality import (
    Figures,
    Measured,
    Reference,
    Speed,
    figures_of,
    measure,
    remember,
    speed_of,
)
from tunesmith.export.base import size_of
from tunesmith.verbs.calibration import context_limit, own_text, renderer_or_tokenizer
from tunesmith.verbs.quality_texts import LONGEST, ROWS, asked_of, texts_of
from tunesmith.verbs.quantized import describe
from tunesmith.verbs.targets import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER_TOKENS = 48
"""Longest answer that is compared, in tokens."""


class Quality:
    """A context manager: the reference runs when the first export needs it, and its file goes at the end."""

    def __init__(
        self,
        target: Target,
        merged: Path,
        folder: Path,
        progress: Progress,
        *,
        rows: int = ROWS,
        data: str | None = None,
    ) -> None:
        self.target, self.merged, self.folder, self.progress = target, merged, folder, progress
        self.renderer, self.tokenizer = renderer_or_tokenizer(target, merged)
        own = own_text(target, merged, progress, data=data)
        longest = min(LONGEST, context_limit(merged) or LONGEST)
        self.texts, self.about = texts_of(own, self.tokenizer, rows, longest)
        self.asked = asked_of(own, self.renderer, self.tokenizer, longest - ANSWER_TOKENS)
        self.key = _hash(
            [_identity(merged), [asdict(text) for text in self.texts], [asdict(one) for one in self.asked]]
        )
        self._reference: Reference | None = None
        self.failed: dict[str, str] = {}

    def __enter__(self) -> Quality:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reference is not None:
            self._reference.close()
            self._reference = None

    # --- measuring ---------------------------------------------------------------------------------------------------

    @property
    def reference(self) -> Reference:
        """The merged model in fp32, asked once. Raises ExportError when the disk cannot hold its distributions."""
        if self._reference is None:
            from tunesmith.chat.transformers_engine import TransformersEngine
            from tunesmith.verbs.targets import open_weights

            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".distributions-*"):  # of a report that was killed
                if not psutil.pid_exists(int(left.name.rpartition("-")[2])):
                    left.unlink(missing_ok=True)
            positions, words = sum(text.tokens for text in self.texts), max(len(self.tokenizer), 1)
            if shutil.disk_usage(self.folder).free < 2.2 * positions * words:
                raise ExportError(
                    f"the quality report needs {2.2 * positions * words / 1e9:.1f} GB of disk in {self.folder} while it runs",
                    hint="free some space, measure less (--report-rows), or leave it out (--no-report)",
                )
            self.progress.start("opening the 16-bit model")
            engine: Any = None
            try:
                whole = Target(self.target.name, replace(self.target.base, folder=self.merged))
                weights = open_weights(whole, precision="fp32", as_trained=False)
                self.progress.finish()
                engine = TransformersEngine(weights, _words(self.renderer, self.tokenizer), "16 bit")
                self._reference = remember(
                    engine, self.texts, self.asked, self.folder / f".distributions-{os.getpid()}", decode=self._decode,
                    answer_tokens=ANSWER_TOKENS, bytes_=_weights(self.merged), progress=self.progress,
                )  # fmt: skip
            finally:
                if engine is not None:
                    engine.close()
            write_json(
                self.folder / "results" / "16 bit.json", {"key": self.key, **plain(asdict(self._reference.measured))}
            )
        return self._reference

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def known(self, name: str, settings: Mapping[str, Any]) -> Measured | None:
        """What was measured of this export before, on the same texts."""
        found = _read(self.folder / "results" / f"{name}.json")
        if found is None or found.get("key") != self._key(settings):
            return None
        return _measured(found)

    def _key(self, settings: Mapping[str, Any]) -> str:
        return _hash([self.key, dict(settings)])

    def measure(self, name: str, place: Path, settings: Mapping[str, Any]) -> Measured:
        """Measure the export at ``place`` in the engine it is used with, and keep the result. Raises UserError."""
        reference = self.reference
        kind = "folder" if place.is_dir() else place.suffix
        if kind == "folder" and not self.has_base_speed(kind):
            self._keep_speed(kind, self._folder_speed())
        engine = self._open(place, name)
        try:
            found = measure(engine, reference, name, size_of(place), self.progress)
        finally:
            engine.close()
        self.folder.joinpath("results").mkdir(parents=True, exist_ok=True)
        write_json(
            self.folder / "results" / f"{name}.json",
            {"key": self._key(settings), "texts": self.key, "kind": kind, **plain(asdict(found))},
        )
        return found

    def divergence(self, place: Path, name: str) -> Figures:
        """The figures on the first text alone."""
        reference = self.reference
        engine = self._open(place, name)
        try:
            self.progress.start(f"measuring {name}", reference.texts[0].tokens, "tokens")
            found = next(iter(figures_of(engine, reference, self.progress, only_first=True).values()))
            self.progress.finish(f"mean KL {found.mean_kl:.2g}")
        finally:
            engine.close()
        return found

    def base_speed(self, kind: str, place: Path) -> None:
        """Measure the speed of the 16-bit model at ``place`` in the engine of exports of ``kind`` (a suffix, or folder)."""
        engine = self._open(place, "16 bit")
        try:
            found = speed_of(engine, self.texts)
        finally:
            engine.close()
        self._keep_speed(kind, found)

    def _folder_speed(self) -> Speed:
        """The 16-bit model's in transformers, in the numbers that a folder is opened in here."""
        from tunesmith.chat.transformers_engine import TransformersEngine
        from tunesmith.models.devices import best_device
        from tunesmith.models.precision import resolve_precision
        from tunesmith.verbs.targets import open_weights

        if resolve_precision("auto", best_device())[0] == "fp32":
            return self.reference.measured.speed
        whole = Target(self.target.name, replace(self.target.base, folder=self.merged))
        engine = TransformersEngine(
            open_weights(whole, as_trained=False), _words(self.renderer, self.tokenizer), "16 bit"
        )
        try:
            return speed_of(engine, self.texts)
        finally:
            engine.close()

    def _keep_speed(self, kind: str, speed: Speed) -> None:
        self.folder.joinpath("results").mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "results" / f"speed of 16 bit{kind}.json", {"texts": self.key, **asdict(speed)})

    def has_base_speed(self, kind: str) -> bool:
        return (_read(self.folder / "results" / f"speed of 16 bit{kind}.json") or {}).get("texts") == self.key

    def _open(self, place: Path, name: str) -> Any:
        if place.suffix == ".gguf":
            from tunesmith.chat.llamacpp import LlamaCppEngine
            from tunesmith.models.devices import usable_cores

            longest = max(
                [len(p.ids) for text in self.texts for p in text.passages] + [len(one.ids) for one in self.asked]
            )
            return LlamaCppEngine(place, n_ctx=longest + ANSWER_TOKENS + 1, threads=usable_cores(), name=name)
        from tunesmith.verbs.targets import open_engine

        return open_engine(str(place), self.progress, name=name)

    # --- the report --------------------------------------------------------------------------------------------------

    def report(self) -> QualityReport:
        """Everything that was measured of this model on these texts; written as JSON, Markdown and PNG into the folder."""
        from tunesmith.evaluate.quality_plot import picture

        results = self.folder / "results"
        first = _read(results / "16 bit.json")
        if first is None or first.get("key") != self.key:
            first = {"key": self.key, **asdict(self.reference.measured)}
        exports, base = [], {}
        for file in sorted(results.glob("*.json")):
            found = _read(file)
            if found is None or found.get("texts") != self.key or "figures" not in found:
                continue
            one = _measured(found)
            exports.append(one)
            speed = _read(results / f"speed of 16 bit{found['kind']}.json")
            if speed is not None and speed.get("texts") == self.key:
                base[one.name] = Speed(speed["prompt"], speed["answer"])
        made = QualityReport(
            self.target.name, _measured(first), tuple(exports), self.about, tuple(one.shown for one in self.asked), base,
            self.failed, tuple(self._notes()),
        )  # fmt: skip
        write_json(self.folder / "quality.json", made.as_dict())
        write_atomic(self.folder / "quality.md", made.markdown())
        write_atomic(self.folder / "quality.png", picture(made))
        return made

    def _notes(self) -> Iterator[str]:
        config = self.target.config
        if self.target.learned is None:
            return
        if self.target.original is not None:
            yield "the adapter was trained on a base that is stored quantized and merged into its 16-bit original; figures are against that"
        elif config is not None and config.model.quantize is not None:
            yield (
                f"the adapter was trained on its base in {describe(config.model.quantize)} and merged into the 16-bit model; "
                "figures are against that"
            )


def quality_folder(target: Target, place: Path) -> Path:
    """Where the report of an export at ``place`` goes: with the run, else beside the export."""
    if target.run is not None:
        step = target.learned.name if target.learned is not None else "base"
        return target.run.artifacts / "quality" / step
    return (place.parent if place.suffix else place.parent / f"{place.name}-quality") / "quality"


def _identity(folder: Path) -> list[Any]:
    """What the weights in a folder are, without reading them."""
    files = sorted(folder.glob("*.safetensors"))
    return [str(folder), [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]]


def _weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _measured(found: Mapping[str, Any]) -> Measured:
    figures = {name: Figures(**{k: _number(v) for k, v in one.items()}) for name, one in found["figures"].items()}
    return Measured(
        found["name"], found["bytes"], figures, tuple(found["answers"]), found["changed"], Speed(**found["speed"])
    )


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value


def _words(renderer: Any, tokenizer: Any) -> Any:
    if renderer is None:
        raise UserError(
            f"the tokenizer of {getattr(tokenizer, 'name_or_path', 'this model')} has no chat template, so its answers cannot be measured",
            hint="leave the quality report out: --no-report",
        )
    return renderer


def print_quality(report: QualityReport) -> None:
    """The table, the warnings and the recommendation, on stderr."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=True, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    header, rows = report.short(wide=console.width >= 110)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    bold = report.recommendation.use
    for row in rows:
        table.add_row(*row, style="bold" if row[0] == bold else "red" if row[-1] == "BROKEN" else None)
    console.print(table)
    for line in report.warnings:
        console.print(f"WARNING: {line}", style="bold red", markup=False, soft_wrap=True)
    for note in report.notes:
        console.print(note, markup=False, soft_wrap=True)
    words = report.recommendation.words
    console.print(words[:1].upper() + words[1:], markup=False, soft_wrap=True)
