"""Levels of a GGUF: their names, several made and measured in one go, and what is made on trial (``verbs.choosing`` picks one)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from tunesmith.config.base import Config
from tunesmith.config.errors import ExportError, UserError
from tunesmith.config.progress import Progress
from tunesmith.evaluate.quality_rules import size
from tunesmith.export import imatrix
from tunesmith.export.base import NotProvedError
from tunesmith.export.beside import beside, modelfile_beside
from tunesmith.export.fingerprint import sha256_of
from tunesmith.export.record import beside_of, changed, on_trial, record_of, settle
from tunesmith.verbs.calibration import calibration_rows
from tunesmith.verbs.gguf import GgufExport, gguf
from tunesmith.verbs.making import check_level, config_of, levels_of, named, place_of, tokens_wanted
from tunesmith.verbs.merged import merged_folder
from tunesmith.verbs.quality import Quality
from tunesmith.verbs.quality_shown import never_lost
from tunesmith.verbs.reference import MergedReference
from tunesmith.verbs.taken import settings_of
from tunesmith.verbs.targets import Target

FULL = ("f32", "f16", "bf16")
"""Not quantized: 16 or 32 bits for every weight."""
SHORT = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "q3_k_m", "q2_k")
"""``--levels usual``."""
PASSED_OVER = ("f32", "bf16", "q5_1", "q5_0", "q4_1", "q4_0")
"""Never chosen for a size or a bound: f16 stands for full numbers, and the older kinds lose more than newer ones of their size."""


def chosen_levels(plugin: ModuleType, text: str) -> tuple[str, ...]:
    """``all`` (every level below 16 bits, and f16), ``usual``, or names between commas; finest first. Raises UserError."""
    levels = levels_of(plugin)
    if not levels:
        raise UserError(f"--levels belongs to --to gguf; the target {named(plugin)} has no levels")
    word = text.strip().lower()
    if word == "all":
        return tuple(level for level in levels if level not in ("f32", "bf16"))
    if word == "usual":
        return tuple(level for level in levels if level in SHORT)
    asked = [part.strip() for part in word.split(",") if part.strip()]
    if not asked:
        raise UserError(
            "--levels names no level", hint="for example: --levels q8_0,q4_k_m, --levels usual or --levels all"
        )
    for level in asked:
        check_level(level, levels)
    return tuple(level for level in levels if level in asked)


@dataclass
class Maker:
    """Makes levels of one model: merged once, calibrated once, the importance matrix of the first serves all.

    ``trial``: what is made may be taken away again; what is kept in the end is settled (``keep``). A call that was killed leaves files
    on trial, which the next one knows by their records."""

    target: Target
    plugin: ModuleType
    settings: Sequence[str]
    progress: Progress
    out: Path | None = None
    data: str | None = None
    trial: bool = False
    given: dict[str, Any] = field(default_factory=dict)
    levels: Sequence[str] = ()
    """Those that will be made, where that is known before the model is merged."""
    _emptied: dict[Path, None] = field(default_factory=dict)
    _kept: Path | None = None

    @cached_property
    def reference(self) -> MergedReference:
        """The merged model as every level is compared with it."""
        return MergedReference(self.target, self.progress)

    @cached_property
    def merged(self) -> Path:
        """The whole model, merged when it is first asked for, with room for all ``levels``."""
        beside = 0
        for level in self.levels:
            with suppress(ExportError):  # told when it is made
                beside += self.estimate(level, self.target.base.folder)
        return merged_folder(self.target, self.progress, beside=beside)

    def config(self, level: str) -> Config:
        return config_of(self.plugin, self.settings, level)

    def place(self, level: str) -> Path:
        return place_of(self.target, self.plugin, self.config(level), self.out)

    def key(self, level: str) -> dict[str, Any]:
        """The settings that decide a level's file."""
        return key_of(self.config(level), self.data)

    def estimate(self, level: str, source: Path | None = None) -> int:
        """Bytes of the file, before it is made (of ``source``; default: the merged model). Raises ExportError."""
        return int(self.plugin.estimate(source or self.merged, self.config(level)))

    def make(self, level: str) -> GgufExport:
        """The level's file; one that lies at its place is taken when it was made from the same. Raises UserError."""
        config = self.config(level)
        tokens = tokens_wanted(self.plugin, config)
        if tokens and "calibration" not in self.given:
            self.given["calibration"] = calibration_rows(
                self.target, self.merged, tokens, 0, self.data, progress=self.progress
            )
        made = gguf(
            self.target, self.progress, config=config, out=self.out, data=self.data, reuse=True, trial=self.trial, given=self.given,
            reference=self.reference,
        )  # fmt: skip
        matrix = made.report.checks.get("imatrix")
        if matrix and Path(str(matrix)).is_file():
            self.given["matrix"] = Path(str(matrix))
        return made

    def remove(self, level: str) -> None:
        """Take away a level's file that was made on trial, also by an earlier call; any other stays."""
        file = self.place(level)
        self._emptied[file.parent] = None
        if not on_trial(file):
            return
        written = beside_of(file)
        for path in (*beside(file).values(), modelfile_beside(file)):  # but not what somebody changed by hand
            renewed = written.get(path.name)
            if renewed is None or not path.is_file() or sha256_of(path) == renewed:
                path.unlink(missing_ok=True)
        for path in (file, record_of(file)):
            path.unlink(missing_ok=True)
        if file.parent != self.out and not any(file.parent.iterdir()):
            file.parent.rmdir()

    def keep(self, level: str) -> None:
        """A level's file stays."""
        place = self.place(level)
        settle(place)
        if place.is_file() and tokens_wanted(self.plugin, self.config(level)):
            self._kept = place.parent

    def tidy(self) -> None:
        """When all is chosen: an importance matrix of ours goes beside the level that was kept, none stays where no file is left."""
        for folder in self._emptied:
            matrix = folder / imatrix.NAME
            if not folder.is_dir() or any(p.suffix == ".gguf" and p != matrix for p in folder.iterdir()):
                continue
            if matrix.is_file() and imatrix.is_ours(matrix):
                if self._kept is None or (self._kept / imatrix.NAME).exists():
                    matrix.unlink()
                else:
                    matrix.rename(self._kept / imatrix.NAME)
            if folder != self.out and not any(folder.iterdir()):
                folder.rmdir()

    def ladder(self, source: Path | None = None) -> list[tuple[str, int]]:
        """Levels to choose from with their estimated bytes, smallest first; those that this model cannot have fall out."""
        found = []
        self.progress.start("estimating the sizes of the levels")
        for level in levels_of(self.plugin):
            if level in PASSED_OVER:
                continue
            try:
                found.append((level, self.estimate(level, source)))
            except ExportError as error:
                if source is None:
                    self.progress.say(f"{level} is passed over: {error.message}")
        self.progress.finish()
        return sorted(found, key=lambda pair: pair[1])


def key_of(config: Config, data: str | None) -> dict[str, Any]:
    """What decides an export, for the report that its figures are kept in: its settings (files by their content) and its text."""
    return {**settings_of(config), "data": data}


def make_levels(maker: Maker, levels: Sequence[str], quality: Quality, *, keep: str) -> None:
    """Make and measure every level; one that fails is told and does not lose the others. What was measured before is not again.

    Raises ExportError when the disk cannot hold the files, or when no level could be made.
    """
    _check_disk(maker, [level for level in levels if not maker.place(level).exists()])
    for level in levels:
        known = quality.known(level, maker.key(level))
        if known is not None and (keep == "recommended" or changed(maker.place(level)) is None):
            maker.progress.say(f"{level} was measured before")
            continue
        try:
            made = maker.make(level)
        except (UserError, OSError) as error:
            if isinstance(error, NotProvedError) and error.source is not None:
                raise
            words = error.message if isinstance(error, UserError) else str(error)
            quality.failed[level] = words.splitlines()[0]
            maker.progress.say(f"warning: {level} could not be made: {words}")
            continue
        with never_lost(f"{level} was made and not measured", maker.progress):
            if level in ("f16", "bf16") and not quality.has_base_speed(".gguf"):
                quality.base_speed(".gguf", made.file)
            if known is None or known.bytes != made.report.bytes:
                quality.measure(level, made.file, maker.key(level))
    if len(quality.failed) == len(levels):
        raise ExportError(f"no level could be made; the first: {next(iter(quality.failed.values()))}")


def _check_disk(maker: Maker, levels: Sequence[str]) -> None:
    needed: dict[Path, int] = {}
    for level in levels:
        folder = maker.place(level).parent
        at = next(p for p in [folder, *folder.parents] if p.exists())
        try:
            needed[at] = needed.get(at, 0) + maker.estimate(level)
        except ExportError:  # told when it is made
            continue
    for at, total in needed.items():
        free = shutil.disk_usage(at).free
        if free < 1.02 * total + 2**25:
            raise ExportError(
                f"{len(levels)} levels need about {size(total)}, {at} has {size(free)} free",
                hint="name fewer levels, free some space, or choose --out on another disk; nothing was written",
            )


def base_speed(maker: Maker, quality: Quality) -> None:
    """The speed of a 16-bit GGUF in llama.cpp, what the speed of levels is compared with: from one that is there, else one made for it."""
    if quality.has_base_speed(".gguf"):
        return
    for level in ("f16", "bf16"):
        if maker.place(level).is_file() and changed(maker.place(level)) is None:
            quality.base_speed(".gguf", maker.place(level))
            return
    file = quality.folder / ".f16.gguf"
    try:
        maker.plugin.export(maker.merged, file, config_of(maker.plugin, (), "f16"), maker.progress)
        quality.base_speed(".gguf", file)
    except (UserError, OSError) as error:
        maker.progress.say(f"the speed of 16 bit was not measured: {error}")
    finally:
        file.unlink(missing_ok=True)
