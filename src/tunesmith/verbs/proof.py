"""The proof of an export: hop by hop from the model as it was trained to each file, on rows it was not trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.errors import ExportError
from tunesmith.config.progress import Progress
from tunesmith.verbs import quantized
from tunesmith.verbs.gguf import GgufExport, replace_folder
from tunesmith.verbs.targets import Target

if TYPE_CHECKING:
    from tunesmith.evaluate.parity import Parity, Remembered

PARITY_BOUNDS = {"f32": 1e-3, "f16": 1e-3, "bf16": 2e-3, "q8_0": 0.02}
"""Mean KL (nats) to the merged model that is usual for a type; above it the person is told."""
MERGE_BOUND = 0.02
"""Mean KL (nats) that rounding merged weights to the base's 16 bits stays below; a merge that lost its adapter does not."""
BROKEN = 5.0
"""So many times the usual is no rounding any more: the file is refused. (Weights learned by heart from a handful of rows
lose more in 8 bits than usual, measured up to 1.6 times; other weights or tokens give hundreds of times.)"""


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
            bound = PARITY_BOUNDS[one.level]
            if not figures.mean_kl <= BROKEN * bound:
                finer = (
                    "" if one.level in ("f16", "f32", "bf16") else "; this type may be too coarse here, f16 is finer"
                )
                raise ExportError(
                    f"{one.file.name} does not answer as the merged model does: {in_words(figures)}",
                    hint=f"usual for {one.level} is a mean KL below {bound}{finer}; the file was kept as {doubted[one.file]}",
                )
            progress.finish(in_words(figures))
            if figures.mean_kl > bound:
                progress.say(
                    f"warning: {one.level} changes this model more than usual (mean KL {figures.mean_kl:.2g}, usual below {bound}); "
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
