"""``tunesmith export``: a run or model -> a target's file or folder, checked against what it was made from, and measured."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tunesmith.config.base import Config
from tunesmith.config.errors import UserError
from tunesmith.config.progress import Progress
from tunesmith.export.record import changed
from tunesmith.hub.push import destination
from tunesmith.verbs import quantized
from tunesmith.verbs.beside import accompany, adapter_beside
from tunesmith.verbs.choosing import bytes_of, check_size, for_kl, for_size
from tunesmith.verbs.gguf import GgufExport, gguf
from tunesmith.verbs.levels import FULL, Maker, base_speed, chosen_levels, key_of, make_levels
from tunesmith.verbs.making import config_of, label_of, levels_of, make, named, place_of, plugin_of
from tunesmith.verbs.push import check_push, push
from tunesmith.verbs.quality import Quality, quality_folder
from tunesmith.verbs.quality_shown import never_lost, print_quality
from tunesmith.verbs.quality_texts import ROWS
from tunesmith.verbs.stopping import in_words, kept_in
from tunesmith.verbs.targets import Target, target_of

NOT_MADE = "the quality report was not made"


@dataclass(frozen=True)
class Choice:
    """How the level is chosen, when it is not named, and what is measured. ``rows``: of the person's own data; ``keep``: which
    files of ``levels`` stay (all, recommended)."""

    levels: str | None = None
    target_size: str | None = None
    max_kl: float | None = None
    keep: str = "all"
    report: bool = True
    rows: int = ROWS


@dataclass(frozen=True)
class Push:
    """Where the result goes besides: ``to`` as in ``hf:org/name`` or ``ms:org/name``."""

    to: str
    public: bool = False


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
    choice: Choice = Choice(report=False),
    onto: Push | None = None,
) -> tuple[Path, list[str]]:
    """Export ``text`` (a run or model) ``to`` a target with its ``key=value`` settings. Returns where it lies and what was
    checked, in words; the quality report is printed on stderr.

    ``level``: short for ``level=…``. ``base``: the 16-bit original of a base that is stored quantized; the adapter is merged
    into it. ``data``: a set to calibrate with and to measure on. ``onto``: a hub that gets the result. Raises UserError; unknown
    targets and settings before anything is downloaded, and a push that is not possible before anything is made.
    """
    plugin = plugin_of(to)
    _check(plugin, settings, level, choice)
    several = chosen_levels(plugin, choice.levels) if choice.levels is not None else ()
    limit = bytes_of(choice.target_size) if choice.target_size is not None else None
    config = config_of(plugin, settings, several[0] if several else level)
    if onto is not None:
        destination(onto.to)
    target = quantized.on_original(target_of(text, progress), base, progress)
    if onto is not None:
        check_push(onto.to, target)
    folders = [*([out.parent, out] if out is not None else []), target.run.artifacts if target.run else Path.cwd()]
    with in_words(lambda: kept_in(*folders)):
        place, lines = _made(target, plugin, config, progress, settings, out, data, several, limit, choice)
    if onto is not None:
        with in_words(lambda: f"{place} is kept and was not pushed"):
            lines.append(f"pushed: {push(place, onto.to, progress, public=onto.public)}")
    return place, lines


def _made(
    target: Target, plugin: ModuleType, config: Config, progress: Progress, settings: Sequence[str], out: Path | None,
    data: str | None, several: Sequence[str], limit: int | None, choice: Choice,
) -> tuple[Path, list[str]]:  # fmt: skip
    if several or limit is not None or choice.max_kl is not None:
        trial = not several or choice.keep == "recommended"
        maker = Maker(target, plugin, settings, progress, out, data, trial, levels=several)
        if several:
            return _several(maker, several, choice)
        return _chosen(maker, limit, choice)
    if levels_of(plugin):
        one = gguf(target, progress, config=config, out=out, data=data, reuse=True)
        return one.file, _told(one, target, plugin, config, data, choice, progress)
    made = make(target, plugin, config, progress, out=out, data=data, reuse=True)
    lines = [*made.report.lines(), *made.report.notes]
    if made.place.is_file() and made.place.suffix == ".gguf":
        lines += adapter_beside(target, made.place, made.report.checks, progress)
    if made.merged is not None and choice.report:
        folder, key = quality_folder(target, made.place), key_of(config, data)
        with never_lost(NOT_MADE, progress):
            with Quality(target, made.merged, folder, progress, rows=choice.rows, data=data) as quality:
                lines += _measured(quality, label_of(plugin, config), made.place, key, made.fresh)
    return made.place, lines


def _check(plugin: ModuleType, settings: Sequence[str], level: str | None, choice: Choice) -> None:
    """Raises UserError for two answers to one question, and for questions that the target does not have."""
    asked = {
        "--level": level is not None,
        "level=…": any(text.partition("=")[0].strip() == "level" for text in settings),
        "--levels": choice.levels is not None,
        "--target-size": choice.target_size is not None,
        "--max-kl": choice.max_kl is not None,
    }
    given = [name for name, flag in asked.items() if flag]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} both choose the level", hint="give one of them")
    if given and not levels_of(plugin) and given[0] != "level=…":
        raise UserError(f"{given[0]} belongs to --to gguf; the target {named(plugin)} has no levels")
    if choice.keep not in ("all", "recommended"):
        raise UserError(f"--keep {choice.keep}: expected all or recommended")
    if choice.max_kl is not None and not choice.max_kl > 0:
        raise UserError(
            f"--max-kl {choice.max_kl:g}: no level loses nothing", hint="give a bound above 0, for example 0.05"
        )


def _several(maker: Maker, levels: Sequence[str], choice: Choice) -> tuple[Path, list[str]]:
    """Every level made and measured in one table; the path is that of the recommended one, or of the finest."""
    if maker.out is not None and maker.out.suffix == ".gguf":
        raise UserError(f"--out {maker.out} is one file, but several levels are made", hint="name a folder")
    folder = quality_folder(maker.target, maker.place(levels[0]))
    with Quality(maker.target, maker.merged, folder, maker.progress, rows=choice.rows, data=maker.data) as quality:
        if "f16" not in levels:
            base_speed(maker, quality)
        make_levels(maker, levels, quality, keep=choice.keep)
        report = None
        with never_lost(NOT_MADE, maker.progress):
            report = quality.report()
        use = report.recommendation.use if report is not None else None
        if choice.keep == "recommended" and use is not None and use in levels:
            maker.make(use)
            maker.keep(use)
            for level in levels:
                maker.remove(level)
        for level in levels:  # also where an export of another call is what is recommended
            maker.keep(level)
        maker.tidy()
    for file in filter(Path.is_file, map(maker.place, levels)):
        accompany(maker.target, file, maker.progress)  # now with its figures
    place = next(
        (p for p in map(maker.place, [one for one in (use, *levels) if one in levels and one]) if p.exists()), folder
    )
    if report is None:
        return place, ["the levels were not measured, so none is recommended and all stay"]
    print_quality(report)
    return place, [report.recommendation.words, f"quality report: {folder / 'quality.md'}"]


def _chosen(maker: Maker, limit: int | None, choice: Choice) -> tuple[Path, list[str]]:
    """The level chosen for a size or for a bound of damage, proved and measured."""
    target, data, progress = maker.target, maker.data, maker.progress
    if limit is not None:
        check_size(maker, limit)
    folder = quality_folder(target, maker.place("f16"))
    with Quality(target, maker.merged, folder, progress, rows=choice.rows, data=data) as quality:
        if limit is not None:
            one = for_size(maker, limit)
        else:
            assert choice.max_kl is not None
            one = for_kl(maker, quality, choice.max_kl)
        config = maker.config(one.level)
        lines = _told(one, target, maker.plugin, config, data, choice, progress, quality)
    return one.file, [f"chosen: {one.level}", *lines]


def _told(
    one: GgufExport, target: Target, plugin: ModuleType, config: Config, data: str | None, choice: Choice,
    progress: Progress, quality: Quality | None = None,
) -> list[str]:  # fmt: skip
    """What came out of one GGUF; it is measured when it is quantized (by ``quality``, if it is open already)."""
    compared = str(one.report.checks.get("compared", "with the merged model when it was made"))
    lines = [
        f"{one.report.bytes / 1e6:.0f} MB, {'compared ' if compared.startswith('with') else ''}{compared}",
        f"Modelfile: {one.modelfile} ({one.template_reason})",
    ]
    if choice.report and one.level not in FULL:
        with never_lost(NOT_MADE, progress), ExitStack() as stack:
            if quality is None:
                folder = quality_folder(target, one.file)
                opened = Quality(target, one.merged, folder, progress, rows=choice.rows, data=data)
                quality = stack.enter_context(opened)
            full = place_of(target, plugin, config_of(plugin, (), "f16"))
            if full.is_file() and changed(full) is None and not quality.has_base_speed(".gguf"):
                quality.base_speed(".gguf", full)
            lines += _measured(quality, one.level, one.file, key_of(config, data), one.fresh)
    return lines


def _measured(quality: Quality, name: str, place: Path, key: dict[str, object], fresh: bool) -> list[str]:
    """The quality report with one more export in it. One that was there already may have been measured before."""
    if fresh or quality.known(name, key) is None:
        quality.measure(name, place, key)
    print_quality(quality.report())
    if place.is_file() and place.suffix == ".gguf":
        accompany(quality.target, place, quality.progress)  # now with its figures
    return [f"quality report: {quality.folder / 'quality.md'}"]
