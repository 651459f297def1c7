"""The quality report of exports: measured in their own engines against the merged 16-bit model, kept with the run.

What was measured lies in ``results/`` of the report's folder, one file for each export, under a key of all that decides it: an
interrupted report goes on, and later exports of the same model join the same table.
"""

from __future__ import annotations

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
from tunesmith.evaluate.quality_report import FP32, QualityReport, plain
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
from tunesmith.verbs.opening import NoRoomError, Way, opened, room_to_ask
from tunesmith.verbs.quality_files import hashed, identity, measured_from, read, weights_of
from tunesmith.verbs.quality_shown import never_lost
from tunesmith.verbs.quality_texts import LONGEST, OWN, ROWS, asked_of, texts_of
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
        self.key = hashed(
            [identity(merged), [asdict(text) for text in self.texts], [asdict(one) for one in self.asked]]
        )
        self._reference: Reference | None = None
        self._no_room: NoRoomError | None = None
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
        """The merged model, asked once. Raises ExportError when the disk cannot hold its distributions, NoRoomError without memory for it."""
        if self._reference is None:
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
            self._reference = self._remembered()
            write_json(
                self.folder / "results" / "16 bit.json",
                {"key": self.key, "numbers": self._reference.numbers, **plain(asdict(self._reference.measured))},
            )
        return self._reference

    def _remembered(self) -> Reference:
        """The merged model asked in the best way that fits (``verbs.opening``). Raises NoRoomError, the second time at once."""
        if self._no_room is not None:
            raise self._no_room
        whole = Target(self.target.name, replace(self.target.base, folder=self.merged))
        passages = [passage.ids for text in self.texts for passage in text.passages]
        renderer = _words(self.renderer, self.tokenizer)

        def ask(engine: Any, way: Way) -> Reference:
            return remember(
                engine, self.texts, self.asked, self.folder / f".distributions-{os.getpid()}", decode=self._decode,
                answer_tokens=ANSWER_TOKENS, bytes_=weights_of(self.merged), numbers=str(way), progress=self.progress,
            )  # fmt: skip

        try:
            return opened(whole, renderer, "16 bit", passages, ask, self.progress, answers=True)
        except NoRoomError as error:
            self._no_room = NoRoomError(
                f"the 16-bit model cannot be opened to compare with: {error.message}", error.hint
            )
            raise self._no_room from error

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def known(self, name: str, settings: Mapping[str, Any]) -> Measured | None:
        """What was measured of this export before, on the same texts."""
        found = read(self.folder / "results" / f"{name}.json")
        if found is None or found.get("key") != self._key(settings):
            return None
        return measured_from(found)

    def _key(self, settings: Mapping[str, Any]) -> str:
        return hashed([self.key, dict(settings)])

    def measure(self, name: str, place: Path, settings: Mapping[str, Any]) -> Measured:
        """Measure the export at ``place`` in the engine it is used with, and keep the result. Raises UserError."""
        reference = self.reference
        kind = "folder" if place.is_dir() else place.suffix
        if kind == "folder" and not self.has_base_speed(kind):
            with never_lost("the speed of the 16-bit model was not measured", self.progress):
                self._keep_speed(kind, self._folder_speed())
        engine = self._open(place, name)
        try:
            found = measure(engine, reference, name, size_of(place), self.progress)
        finally:
            engine.close()
        self.folder.joinpath("results").mkdir(parents=True, exist_ok=True)
        write_json(
            self.folder / "results" / f"{name}.json",
            {
                "key": self._key(settings),
                "texts": self.key,
                "kind": kind,
                "against": reference.numbers,
                **plain(asdict(found)),
            },
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

        known = self.reference.measured.speed if self.reference.numbers == FP32 else None
        if known is not None and resolve_precision("auto", best_device())[0] == "fp32":
            return known
        whole = Target(self.target.name, replace(self.target.base, folder=self.merged))
        room_to_ask(whole)
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
        return (read(self.folder / "results" / f"speed of 16 bit{kind}.json") or {}).get("texts") == self.key

    def _open(self, place: Path, name: str) -> Any:
        if place.is_file() and place.suffix == ".gguf":
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
        first = read(results / "16 bit.json")
        if first is None or first.get("key") != self.key:
            first = {"key": self.key, "numbers": self.reference.numbers, **asdict(self.reference.measured)}
        numbers = str(first.get("numbers", FP32))
        exports, base, notes, others = [], {}, list(self._notes()), []
        for file in sorted(results.glob("*.json")):
            found = read(file)
            if found is None or "figures" not in found:
                continue
            if found.get("texts") != self.key:
                others += [file.stem] if "texts" in found else []
                continue
            one = measured_from(found)
            exports.append(one)
            if (other := found.get("against", FP32)) != numbers:
                notes.append(f"{one.name} was measured against the 16-bit model {other}")
            speed = read(results / f"speed of 16 bit{found['kind']}.json")
            if speed is not None and speed.get("texts") == self.key:
                base[one.name] = Speed(speed["prompt"], speed["answer"])
        if others:
            notes.append(
                f"measured before on other texts or another number of rows, and so not in this table: {', '.join(others)}; "
                "the same --report-rows and --data put them together"
            )
        made = QualityReport(
            self.target.name, measured_from(first), tuple(exports), self.about, tuple(one.shown for one in self.asked), base,
            self.failed, tuple(notes), numbers,
        )  # fmt: skip
        write_json(self.folder / "quality.json", made.as_dict())
        write_atomic(self.folder / "quality.md", made.markdown())
        write_atomic(self.folder / "quality.png", picture(made))
        return made

    def _notes(self) -> Iterator[str]:
        config = self.target.config
        if self.texts[-1].name == OWN and len(self.texts) > 1:
            yield (
                f"{OWN}: {self.texts[-1].tokens} tokens are too few to judge by, so {self.texts[0].name} text decides "
                "(--data SET names more of your own)"
            )
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


def _words(renderer: Any, tokenizer: Any) -> Any:
    if renderer is None:
        raise UserError(
            f"the tokenizer of {getattr(tokenizer, 'name_or_path', 'this model')} has no chat template, so its answers cannot be measured",
            hint="leave the quality report out: --no-report",
        )
    return renderer
