"""The proof of an export: hop by hop from the model as it was trained to each file, on rows it was not trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.errors import ExportError, UserError
from tunesmith.config.progress import Progress
from tunesmith.export.gguf_levels import LEVELS
from tunesmith.verbs import quantized
from tunesmith.verbs.gguf import GgufExport, replace_folder
from tunesmith.verbs.targets import Target

if TYPE_CHECKING:
    import numpy as np

    from tunesmith.chat.base import Engine, Messages, Sampling
    from tunesmith.evaluate.parity import Parity, Remembered

MERGE_BOUND = 0.02
"""Mean KL (nats) that rounding merged weights to the base's 16 bits stays below; a merge that lost its adapter does not."""
BROKEN = 5.0
"""So many times the usual is no rounding any more: the file is refused. (Weights learned by heart from a handful of rows
lose more in 8 bits than usual, measured up to 1.6 times; other weights or tokens give hundreds of times.)"""
KEPT = 3
"""Distributions at so many positions of each sequence are kept, for comparisons with a server."""


@dataclass(frozen=True)
class Hop:
    """One step from the trained model to the served one. ``usual``: mean KL (nats) that it stays below."""

    name: str
    figures: Parity
    usual: float

    def __str__(self) -> str:
        return f"{self.name}: {in_words(self.figures)} (usual: below {self.usual:g})"


@dataclass(frozen=True)
class Position:
    """What stands after ``ids``: natural-log probabilities [vocabulary] of the merged model, and of the GGUF in llama.cpp."""

    ids: tuple[int, ...]
    merged: np.ndarray
    file: np.ndarray


@dataclass
class Evidence:
    """What a comparison of numbers leaves for the report: its hops, and of the last file some positions."""

    hops: list[Hop] = field(default_factory=list)
    positions: list[Position] = field(default_factory=list)


def usual_kl(level: str) -> float:
    """Mean KL (nats) to the merged model that a GGUF of this level usually stays below."""
    return LEVELS[level].usual_kl


def check_parity(
    target: Target,
    made: Sequence[GgufExport],
    progress: Progress,
    *,
    rows: int = 8,
    evidence: Evidence | None = None,
) -> list[Parity]:
    """Hop by hop on rows it was not trained on: the model as trained (base and what was learned) -> merged -> each GGUF in llama.cpp.

    transformers computes in fp32. Raises ExportError when a hop changes the model; a GGUF that was not proved, for
    whatever reason, is renamed, so that nothing takes it for a proved one. ``evidence`` is filled.
    """
    from tunesmith.chat.llamacpp import LlamaCppEngine
    from tunesmith.models.devices import usable_cores

    evidence = evidence if evidence is not None else Evidence()
    doubted = {one.file: one.file.with_name(one.file.name + ".failed") for one in made}
    found = []
    try:
        reference, sequences = check_merge(target, made[0].merged, progress, rows=rows, evidence=evidence)
        for one in made:
            progress.start(f"comparing {one.file.name} in llama.cpp with the merged model in transformers")
            other = Keeping(LlamaCppEngine(one.file, threads=usable_cores()))
            try:
                figures = _parity(one.file, reference, other, sequences)
                evidence.positions = kept_positions(reference, other, sequences)
            finally:
                other.close()
            bound = usual_kl(one.level)
            evidence.hops.append(Hop(f"merged → {one.file.name} in llama.cpp", figures, bound))
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


def _parity(file: Path, reference: Engine, other: Engine, sequences: Sequence[tuple[int, ...]]) -> Parity:
    """``parity``; what cannot be compared (not-a-number, another vocabulary) is a failure of the file."""
    from tunesmith.evaluate.parity import parity

    try:
        return parity(reference, other, sequences)
    except UserError as error:
        raise ExportError(
            f"{file.name} does not answer as the merged model does: {error.message}", hint=error.hint
        ) from error


def check_merge(
    target: Target, folder: Path, progress: Progress, *, rows: int = 8, evidence: Evidence | None = None
) -> tuple[Remembered, list[tuple[int, ...]]]:
    """The merged folder against the model as trained: its base with the learned weights beside it, both computed in fp32.

    Returns what the merged model tells about the probe sequences, and these. Raises ExportError.
    """
    from tunesmith.chat.transformers_engine import TransformersEngine
    from tunesmith.evaluate.parity import Remembered, parity
    from tunesmith.verbs.targets import open_weights

    evidence = evidence if evidence is not None else Evidence()
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
    evidence.hops.append(Hop("trained → merged", figures, MERGE_BOUND))
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
        evidence.hops.append(Hop("trained on the quantized base → merged", difference, quantized.QUANTIZED_BOUND))
        progress.finish(in_words(difference))
        quantized.warn_of_difference(difference.mean_kl, progress)
    return whole, sequences


class Keeping:
    """An engine of which the distributions at a few positions of each sequence are kept, evenly over its second half (where answers are)."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.name = engine, engine.name
        self.rows: dict[tuple[int, ...], dict[int, np.ndarray]] = {}

    def stream(self, messages: Messages, sampling: Sampling) -> Iterator[str]:
        """The engine's own answer."""
        return self.engine.stream(messages, sampling)

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        """The engine's distributions: float32, [len(tokens), vocabulary]."""
        found = self.engine.logprobs(tokens)
        last, half = len(tokens) - 1, len(tokens) // 2
        ends = sorted({half + (last - half) * (k + 1) // KEPT for k in range(KEPT)} - {0})
        self.rows[tuple(tokens)] = {at: found[at].copy() for at in ends}
        return found

    def close(self) -> None:
        """Close the engine; what was kept stays."""
        self.engine.close()


def kept_positions(merged: Remembered, file: Keeping, sequences: Sequence[tuple[int, ...]]) -> list[Position]:
    """The positions kept of ``file``, with what the merged model tells there."""
    return [
        Position(ids[: at + 1], merged.logprobs(ids)[at].copy(), row)
        for ids in sequences
        for at, row in file.rows[ids].items()
    ]


def probe_tokens(target: Target, merged: Path, rows: int) -> list[tuple[int, ...]]:
    """Token sequences to compare on: those the run kept (held-out rows, else training rows), else a few of our own.

    They are kept with the run since its data may be gone by now.
    """
    from tunesmith.data.example import Chat, Message

    run = target.run if target.learned is not None or not _new_tokens(target) else None  # its rows may hold new tokens
    kept = run.path / "rows.json" if run is not None else None
    if kept is not None and kept.is_file():
        probes = json.loads(kept.read_text(encoding="utf-8"))["probes"][:rows]
        if found := [tuple(ids) for ids in probes if len(ids) > 1]:
            return found
    pairs = [
        ("What is the capital of France?", "The capital of France is Paris."),
        ("你好，你是谁？", "你好！我是一个助手。"),
    ]
    renderer = replace_folder(target, merged)
    return [renderer.render(Chat((Message("user", q), Message("assistant", a)))).ids for q, a in pairs]


def _new_tokens(target: Target) -> bool:
    return target.config is not None and bool(target.config.model.add_tokens or target.config.model.add_special_tokens)


def in_words(figures: Parity) -> str:
    return f"mean KL {figures.mean_kl:.2g} nats, top-1 agreement {figures.top1_agreement:.1%} over {figures.positions} positions"
