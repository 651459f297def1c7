"""One export: from a person's settings to the target's file, with what the target asks for. It knows no target by name.

A target (``export/targets/<name>.py``) says what it takes and writes: ``SOURCE`` ("merged", a whole 16/32-bit model folder, or "learned",
what was learned on a base), ``OUT`` ("folder" or the suffix of one file), ``label(config)`` (what its result is called),
``calibration(config)`` (tokens of text it wants). Of ``base``, ``stop_token_ids``, ``calibration``, ``told`` (lines for the model
card) and ``prove`` (asked about the finished file or folder before it gets its name) its ``export`` gets those that it has a parameter
for. ``usual_kl(config)``: mean KL (nats) to the merged model that its result usually stays below (none: not compared); ``PROGRAMS``:
packages whose versions decide the result.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tunesmith.config.base import Config
from tunesmith.config.errors import ConfigError, ExportError, UserError
from tunesmith.config.load import Source, apply_overrides, validate
from tunesmith.config.plugins import load as load_plugin
from tunesmith.config.plugins import names, suggestion
from tunesmith.config.progress import Progress
from tunesmith.export import record
from tunesmith.export.base import Report, home_of
from tunesmith.export.numbers import learned_in
from tunesmith.verbs.calibration import calibration_rows
from tunesmith.verbs.merged import TARGETS, merged_folder, prove, slug
from tunesmith.verbs.provenance import provenance
from tunesmith.verbs.reference import MergedReference
from tunesmith.verbs.taken import made_from, taken_or_made
from tunesmith.verbs.targets import Target, renderer_of


@dataclass(frozen=True)
class Made:
    """``place``: the file or folder. ``merged``: the whole model it was made from, None for what was learned alone.

    ``fresh``: it was made now, and not taken as it was there."""

    place: Path
    report: Report
    merged: Path | None
    fresh: bool = True


def plugin_of(to: str) -> ModuleType:
    """The target that people write as ``to`` (``gguf-adapter`` for gguf_adapter.py). Raises UserError with the nearest."""
    name = to.strip().lower().replace("-", "_")
    if name not in names(TARGETS):
        known = [found.replace("_", "-") for found in names(TARGETS)]
        raise UserError(f"there is no export target {to!r}", hint=suggestion(to.lower(), known))
    return load_plugin(TARGETS, name)


def named(plugin: ModuleType) -> str:
    """A target's name as people write it."""
    return plugin.__name__.rpartition(".")[2].replace("_", "-")


def config_of(plugin: ModuleType, settings: Sequence[str] = (), level: str | None = None) -> Config:
    """The target's config from ``key=value`` settings; ``level`` is short for ``level=…``. Raises UserError."""
    fields = list(plugin.Config.model_fields)
    for text in settings:
        if "=" not in text:
            example = f"{fields[0]}={plugin.Config.model_fields[fields[0]].get_default()}" if fields else "key=value"
            raise UserError(
                f"{text!r} is no setting of the target {named(plugin)}",
                hint=f"settings are written key=value: {example}",
            )
    values = apply_overrides({}, settings)
    if level is not None:
        if "level" not in fields:
            raise UserError(f"--level belongs to --to gguf; the target {named(plugin)} has no levels")
        if "level" in values:
            raise UserError(
                f"level={values['level']} and --level {level} are two answers to one question", hint="give one"
            )
        values["level"] = level
    levels = levels_of(plugin)
    if levels and "level" in values:
        values["level"] = str(values["level"]).strip().lower()
        check_level(values["level"], levels)
    overridden = [tuple(text.partition("=")[0].split(".")) for text in settings]
    try:
        config: Config = validate(plugin.Config, values, Source(f"--to {named(plugin)}", {}, overridden))
    except ConfigError as error:
        hint = error.hint or (f"--to {named(plugin)} has the settings {', '.join(fields)}" if fields else None)
        raise UserError(f"--to {named(plugin)}: {error.message}", hint=hint) from None
    return config


def levels_of(plugin: ModuleType) -> tuple[str, ...]:
    """The target's levels, finest first; empty when it has none."""
    return tuple(getattr(plugin, "LEVELS", ()))


def check_level(level: str, levels: Sequence[str]) -> None:
    """Raises UserError for a level that is not there."""
    if level not in levels:
        near = suggestion(level, levels)
        hint = near if near.startswith("known") else f"{near} There are: {', '.join(levels)}"
        raise UserError(f"there is no GGUF level {level!r} here", hint=hint)


def label_of(plugin: ModuleType, config: Config) -> str:
    """What the result is called: ``gptq-4bit-g128``; by default the target's name."""
    found = getattr(plugin, "label", None)
    return str(found(config)) if found is not None else named(plugin)


def place_of(target: Target, plugin: ModuleType, config: Config, out: Path | None = None) -> Path:
    """Where an export goes: ``out``, else the run's artifacts, else the folder the person stands in.

    Raises ExportError when ``out`` is another file.
    """
    name, suffix = label_of(plugin, config), getattr(plugin, "OUT", "folder")
    alone = suffix == "folder"
    file = f"{slug(target)}-{_short(name, levels_of(plugin))}{suffix}"
    if out is not None:
        if out.is_file() and (alone or out.suffix != suffix):
            raise ExportError(
                f"{out} exists already", hint="choose another --out, or remove it first; nothing was changed"
            )
        return out if alone or out.suffix == suffix else out / file
    step = f"-{target.learned.name}" if target.learned is not None else ""
    if target.run is None and alone:
        return Path.cwd() / f"{slug(target)}-{name}"
    folder = (target.run.artifacts if target.run is not None else Path.cwd()) / f"{name}{step}"
    return folder if alone else folder / file


def _short(name: str, levels: Sequence[str]) -> str:
    """``gguf-q4_k_m`` -> ``Q4_K_M``, as everybody writes levels in file names; ``gguf-adapter`` -> ``adapter``."""
    short = name.removeprefix("gguf-")
    return short.upper() if short in levels else short


def make(
    target: Target,
    plugin: ModuleType,
    config: Config,
    progress: Progress,
    *,
    out: Path | None = None,
    data: str | None = None,
    reuse: bool = False,
    trial: bool = False,
    given: Mapping[str, Any] | None = None,
    reference: MergedReference | None = None,
) -> Made:
    """Export ``target``. ``data``: a set to calibrate with. ``reuse``: take what lies at the place when it was made from the same;
    else it is made again, or refused when ``out`` names the place (``verbs.taken``). ``trial``: it may yet be taken away again.

    ``given``: arguments for the target's ``export`` that are known already (calibration rows). ``reference``: the merged model, when
    several exports are compared with it. Raises UserError, ExportError.
    """
    place = place_of(target, plugin, config, out)
    if place.exists() and not reuse:
        raise ExportError(
            f"{place} exists already", hint="choose another --out, or remove it first; nothing was changed"
        )
    learned = getattr(plugin, "SOURCE", "merged") == "learned"
    merged = None if learned else merged_folder(target, progress, beside=_bytes_of(target, plugin, config))
    stood = record.read(merged) if merged is not None else None
    source = merged or target.learned or target.base.folder
    offers: dict[str, Any] = dict(given or {})
    tokens = tokens_wanted(plugin, config)
    if tokens and "calibration" not in offers:
        offers["calibration"] = calibration_rows(target, source, tokens, 0, data, progress=progress)
    asked = inspect.signature(plugin.export).parameters

    def export(place: Path) -> Report:
        if learned:
            offers["base"] = target.base.folder if target.learned is not None else None
        if "stop_token_ids" in asked:
            from tunesmith.render.stop import stop_token_ids

            offers["stop_token_ids"] = stop_token_ids(renderer_of(target))
        if "told" in asked:
            offers["told"] = provenance(target)
        if "prove" in asked and merged is None:
            offers["prove"] = lambda folder: prove(target, folder, progress)
        elif "prove" in asked and merged is not None:
            of = reference or MergedReference(target, progress)
            compare = of.proof_of(plugin, config, merged, home_of(place).name)

            def checked(work: Path) -> dict[str, Any]:
                _still(merged, stood)
                return compare(work) if compare is not None else {}

            offers["prove"] = checked
        report: Report = plugin.export(
            source, place, config, progress, **{k: v for k, v in offers.items() if k in asked}
        )
        return report

    parts = made_from(target, plugin, config, offers.get("calibration") if tokens else None)
    if merged is not None and (fine := learned_in(merged)) is not None:
        parts["numbers"] = fine  # of the merged model it is made from
    taken = taken_or_made(place, parts, export, progress, named=out is not None, trial=trial)
    if not taken.fresh:
        progress.say(f"{place} is there already, made from the same, and is taken")
    return Made(place, taken.report, merged, taken.fresh)


def _bytes_of(target: Target, plugin: ModuleType, config: Config) -> int:
    """About how many bytes the export will have, before the model is merged; 0 when the target does not tell."""
    try:
        return int(plugin.estimate(target.base.folder, config)) if hasattr(plugin, "estimate") else 0
    except ExportError:  # told when it is made
        return 0


def _still(merged: Path, stood: Mapping[str, Any] | None) -> None:
    """Raises ExportError when the merged folder is not what it was when the export of it began; ``stood``: its record then."""
    why = record.difference(merged, stood["made_from"]) if stood is not None else None
    if why is not None:
        raise ExportError(
            f"{merged} was changed or replaced while an export was made from it: {why}",
            hint="give the same command again",
        )


def tokens_wanted(plugin: ModuleType, config: Config) -> int:
    """How many tokens of calibration text the target wants for these settings; 0: none."""
    found = getattr(plugin, "calibration", None)
    return int(found(config)) if found is not None else 0
