"""``tunesmith export``: a run or model -> merged safetensors or GGUF, checked against what it was made from."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import ExportError, UserError
from tunesmith.config.files import write_atomic
from tunesmith.config.plugins import load as load_plugin
from tunesmith.config.progress import Progress
from tunesmith.export.base import Report
from tunesmith.export.modelfile import Modelfile
from tunesmith.verbs import quantized
from tunesmith.verbs.targets import Target, renderer_of, target_of

if TYPE_CHECKING:
    from tunesmith.evaluate.parity import Parity, Remembered

TARGETS = "tunesmith.export.targets"
PARITY_BOUNDS = {"f32": 1e-3, "f16": 1e-3, "bf16": 2e-3, "q8_0": 0.02}
"""Mean KL (nats) to the merged model that is usual for a type; above it the person is told."""
MERGE_BOUND = 0.02
"""Mean KL (nats) that rounding merged weights to the base's 16 bits stays below; a merge that lost its adapter does not."""
BROKEN = 5.0
"""So many times the usual is no rounding any more: the file is refused. (Weights learned by heart from a handful of rows
lose more in 8 bits than usual, measured up to 1.6 times; other weights or tokens give hundreds of times.)"""


@dataclass(frozen=True)
class GgufExport:
    """A GGUF of numbers ``type`` with its Modelfile; ``merged`` is the folder it was made from."""

    type: str
    file: Path
    modelfile: Path
    merged: Path
    content: Modelfile
    template_reason: str
    report: Report


def slug(target: Target) -> str:
    """A short file name for a target."""
    name = target.config.output.name if target.config is not None and target.config.output.name else target.name
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:60] or "model"


def merged_folder(target: Target, progress: Progress, out: Path | None = None) -> tuple[Path, Report | None]:
    """The whole model of a target in the base's numbers: the base as it is, or with what was learned (kept with the run, made once)."""
    if target.learned is None and out is None:
        return target.base.folder, None
    if out is None:
        assert target.learned is not None
        parent = target.run.artifacts if target.run is not None else Path.cwd()
        out = parent / f"merged-{target.learned.name}"
        if out.is_dir():
            return out, None
    from tunesmith.render.stop import stop_token_ids

    hf = load_plugin(TARGETS, "hf")
    stops = stop_token_ids(renderer_of(target))
    base = target.base.folder if target.learned is not None else None
    report = hf.export(
        target.learned or target.base.folder, out, hf.Config(), progress, base=base, stop_token_ids=stops
    )
    return out, report


def export(
    text: str,
    to: str,
    progress: Progress,
    *,
    out: Path | None = None,
    type_: str | None = None,
    base: str | None = None,
) -> tuple[Path, list[str]]:
    """Export ``text`` (a run or model) ``to`` a target. Returns where it lies and what was checked, in words.

    ``base``: the 16-bit original of a base that is stored quantized; the adapter is merged into it.
    """
    load_plugin(TARGETS, to)  # an unknown target is said before anything is downloaded
    target = quantized.on_original(target_of(text, progress), base, progress)
    if to == "hf":
        if type_ is not None:
            raise UserError("--type belongs to --to gguf; hf keeps the numbers of the base")
        parent = target.run.artifacts if target.run is not None else Path.cwd()
        place = out or parent / f"{slug(target)}-hf"
        _, report = merged_folder(target, progress, place)
        assert report is not None
        if target.learned is not None:
            check_merge(target, place, progress)
        return place, [f"{k}: {v}" for k, v in report.checks.items()]
    made = gguf(target, progress, type_=type_ or "f16", out=out)
    figures = check_parity(target, [made], progress)[0]
    return made.file, [
        f"{made.report.bytes / 1e6:.0f} MB, {in_words(figures)}",
        f"Modelfile: {made.modelfile} ({made.template_reason})",
    ]


def gguf(target: Target, progress: Progress, *, type_: str, out: Path | None = None, reuse: bool = False) -> GgufExport:
    """The GGUF of a target with a Modelfile beside it. ``reuse``: take the run's own file when it is there already."""
    plugin = load_plugin(TARGETS, "gguf")
    try:
        config = plugin.Config(type=type_)
    except ValueError:
        raise UserError(
            f"there is no GGUF type {type_!r} here yet",
            hint=f"there are: {', '.join(PARITY_BOUNDS)} (K-quants are not built in yet)",
        ) from None
    if out is None:
        parent = target.run.artifacts if target.run is not None else Path.cwd()
        step = f"-{target.learned.name}" if target.learned is not None else ""
        out = parent / f"gguf-{type_}{step}" / f"{slug(target)}-{type_.upper()}.gguf"
    elif out.is_file():
        raise ExportError(f"{out} exists already", hint="choose another --out, or remove it first; nothing was changed")
    elif out.suffix != ".gguf":
        out = out / f"{slug(target)}-{type_.upper()}.gguf"
    merged, _ = merged_folder(target, progress)
    if reuse and out.exists():
        report = Report(out, out.stat().st_size)
    else:
        report = plugin.export(merged, out, config, progress)
    content, reason = modelfile_for(target, merged, out)
    place = out.parent / "Modelfile"
    if place.exists() and not reuse and f"FROM ./{out.name}" not in place.read_text(encoding="utf-8"):
        place = out.with_suffix(".Modelfile")
    write_atomic(place, content.render())
    return GgufExport(type_, out, place, merged, content, reason, report)


def modelfile_for(target: Target, merged: Path, gguf_file: Path) -> tuple[Modelfile, str]:
    """The Modelfile of a merged model: template found by comparison, stops, context length, sampling, licence."""
    from tunesmith.export.gguf_file import read_gguf
    from tunesmith.export.go_template import choose
    from tunesmith.render.stop import end_of_turn_token

    renderer = replace_folder(target, merged)
    tokenizer = renderer.tokenizer
    adds_bos = bool(read_gguf(gguf_file).metadata.get("tokenizer.ggml.add_bos_token", False))
    choice = choose(
        lambda messages, generation: renderer.text(messages, generation=generation),
        (tokenizer.bos_token or "") if adds_bos else "",
    )
    parameters: dict[str, Any] = {}
    turn = end_of_turn_token(renderer)
    stops = list(choice.template.stop) if choice.template is not None else []
    if turn is not None and turn[1] not in stops:
        stops.insert(0, turn[1])
    if stops:
        parameters["stop"] = stops
    limit = _context_limit(merged)
    wanted = max(4096, target.config.data.max_length if target.config is not None else 0)
    parameters["num_ctx"] = min(wanted, limit) if limit else wanted
    parameters |= _sampling(merged)
    licences = [p for p in sorted(merged.iterdir()) if p.name.upper().startswith(("LICENSE", "LICENCE"))]
    licence = licences[0].read_text(encoding="utf-8", errors="replace") if licences else None
    content = Modelfile(
        from_=f"./{gguf_file.name}", template=choice.template.text if choice.template is not None else None,
        parameters=parameters, license=licence,
    )  # fmt: skip
    try:
        content.render()
    except ExportError:
        content = replace(content, license=None)
    return content, choice.reason


def replace_folder(target: Target, folder: Path) -> Any:
    """The renderer of the exported folder itself: what is served is rendered from what was exported."""
    return renderer_of(target, exported=folder)


def check_parity(target: Target, made: Sequence[GgufExport], progress: Progress, *, rows: int = 8) -> list[Parity]:
    """Hop by hop on rows it was not trained on: the model as trained (base and what was learned) -> merged -> each GGUF in llama.cpp.

    transformers computes in fp32. Raises ExportError when a hop changes the model; a GGUF that was not proved, for
    whatever reason, is renamed, so that nothing takes it for a proved one.
    """
    from tunesmith.chat.llamacpp import LlamaCppEngine
    from tunesmith.evaluate.parity import parity
    from tunesmith.models.devices import usable_cores

    doubted = {one.file: one.file.with_name(one.file.name + ".failed") for one in made}
    found = []
    try:
        reference, sequences = check_merge(target, made[0].merged, progress, rows=rows)
        for one in made:
            progress.start(f"comparing {one.file.name} in llama.cpp with the merged model in transformers")
            other = LlamaCppEngine(one.file, threads=usable_cores())
            try:
                figures = parity(reference, other, sequences)
            finally:
                other.close()
            bound = PARITY_BOUNDS[one.type]
            if not figures.mean_kl <= BROKEN * bound:
                finer = "" if one.type in ("f16", "f32", "bf16") else "; this type may be too coarse here, f16 is finer"
                raise ExportError(
                    f"{one.file.name} does not answer as the merged model does: {in_words(figures)}",
                    hint=f"usual for {one.type} is a mean KL below {bound}{finer}; the file was kept as {doubted[one.file]}",
                )
            progress.finish(in_words(figures))
            if figures.mean_kl > bound:
                progress.say(
                    f"warning: {one.type} changes this model more than usual (mean KL {figures.mean_kl:.2g}, usual below {bound}); "
                    "f16 does not"
                )
            del doubted[one.file]
            found.append(figures)
    finally:
        for file, name in doubted.items():
            file.replace(name)
    return found


def check_merge(
    target: Target, folder: Path, progress: Progress, *, rows: int = 8
) -> tuple[Remembered, list[tuple[int, ...]]]:
    """The merged folder against the model as trained: its base with the learned weights beside it, both computed in fp32.

    Returns what the merged model tells about the probe sequences, and these. Raises ExportError.
    """
    from tunesmith.chat.transformers_engine import TransformersEngine
    from tunesmith.evaluate.parity import Remembered, parity
    from tunesmith.verbs.targets import open_weights

    sequences = probe_tokens(target, folder, rows)
    merged = Target(target.name, replace(target.base, folder=folder))

    def remembered(which: Target, name: str, *, as_trained: bool = False) -> Remembered:
        weights = open_weights(which, precision="fp32", as_trained=as_trained)
        engine = TransformersEngine(weights, replace_folder(target, folder), name)
        found = Remembered(engine)
        for sequence in sequences:
            found.logprobs(sequence)
        engine.close()
        return found

    if target.learned is None:
        return remembered(merged, "model"), sequences
    progress.start("comparing the merged model with the model as it was trained")
    trained, whole = remembered(target, "trained"), remembered(merged, "merged")
    figures = parity(trained, whole, sequences)
    if not figures.mean_kl <= MERGE_BOUND:
        raise ExportError(
            f"{folder}: the merged model does not answer as the trained one does: {in_words(figures)}",
            hint=f"rounding alone stays below a mean KL of {MERGE_BOUND}; do not use this folder, remove it and export again",
        )
    progress.finish(in_words(figures))
    original = target.original
    if original is not None or (target.config is not None and target.config.model.quantize is not None):
        progress.start("comparing it with the quantized base and adapter, as they were trained")
        as_it_was = remembered(replace(target, base=original or target.base), "as trained", as_trained=True)
        difference = parity(as_it_was, whole, sequences)
        progress.finish(in_words(difference))
        quantized.warn_of_difference(difference.mean_kl, progress)
    return whole, sequences


def probe_tokens(target: Target, merged: Path, rows: int) -> list[tuple[int, ...]]:
    """Token sequences to compare on: those the run kept (held-out rows, else training rows), else a few of our own.

    They are kept with the run since its data may be gone by now.
    """
    from tunesmith.data.example import Chat, Message

    run = target.run if target.learned is not None or not _new_tokens(target) else None  # its rows may hold new tokens
    kept = run.path / "rows.json" if run is not None else None
    if kept is not None and kept.is_file():
        probes = json.loads(kept.read_text(encoding="utf-8"))["probes"][:rows]
        return [tuple(ids) for ids in probes]
    pairs = [
        ("What is the capital of France?", "The capital of France is Paris."),
        ("你好，你是谁？", "你好！我是一个助手。"),
    ]
    renderer = replace_folder(target, merged)
    return [renderer.render(Chat((Message("user", q), Message("assistant", a)))).ids for q, a in pairs]


def _new_tokens(target: Target) -> bool:
    return target.config is not None and bool(target.config.model.add_tokens or target.config.model.add_special_tokens)


def in_words(figures: Parity) -> str:
    return f"mean KL {figures.mean_kl:.2g}, top-1 agreement {figures.top1_agreement:.1%} over {figures.positions} positions"


def _context_limit(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    return int(config.get("max_position_embeddings") or 0)


def _sampling(folder: Path) -> dict[str, Any]:
    """Sampling settings that the model's authors put into generation_config.json."""
    try:
        found = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    names = {
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": "top_k",
        "min_p": "min_p",
        "repetition_penalty": "repeat_penalty",
    }
    return {ours: found[theirs] for theirs, ours in names.items() if isinstance(found.get(theirs), (int, float))}
