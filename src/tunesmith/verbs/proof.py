"""The proof of an export: hop by hop from the model as it was trained to each file, on rows it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.errors import ExportError, UserError
from tunesmith.config.home import home
from tunesmith.config.progress import Progress
from tunesmith.export import record
from tunesmith.export.base import NotProvedError, set_aside
from tunesmith.export.gguf_levels import LEVELS
from tunesmith.export.numbers import is_exact, learned_in
from tunesmith.verbs import quantized
from tunesmith.verbs.gguf import GgufExport, replace_folder
from tunesmith.verbs.opening import MORE, NoRoomError, Way, opened, ran_out_of_memory
from tunesmith.verbs.positions import Keeping, Position, kept_positions
from tunesmith.verbs.probe_rows import probe_tokens
from tunesmith.verbs.targets import Target

if TYPE_CHECKING:
    from tunesmith.chat.base import Engine
    from tunesmith.evaluate.parity import Parity, Remembered

MERGE_BOUND = 0.02
"""Mean KL (nats) that rounding merged weights to the base's 16 bits stays below; a merge that lost its adapter does not."""
BROKEN = 5.0
"""So many times the usual is no rounding any more: the file is refused. (Weights learned by heart from a handful of rows
lose more in 8 bits than usual, measured up to 1.6 times; other weights or tokens give hundreds of times.)"""
EXACT_BOUND = 1e-3
"""The same for a merged model that holds what was learned unrounded (``export.numbers``); measured: 1e-7 (float32) and 1e-4 (float16)."""
NOISE = 1e-6
"""Below this mean KL (nats) two models are one in other orders of summing (measured in fp32: 1e-7 and less)."""
NOTABLE, MOST = 0.1, 0.5
"""Parts of the distance between trained model and untrained base: from the one on it is told that rounding took something of what was
learned away; beyond the other it is most of it."""

TOO_COARSE = "; this type may be too coarse here, f16 is finer"
F16_ENDS = "; llama.cpp rounds what enters F16 weights to F16, which ends at 65504: bf16 and f32 hold what is larger inside a model"


@dataclass(frozen=True)
class Hop:
    """One step from the trained model to the served one. ``usual``: mean KL (nats) that it stays below; ``how`` the models in
    transformers were computed, where it was not in fp32 as a whole."""

    name: str
    figures: Parity
    usual: float
    how: str = ""
    moved: float | None = None
    """Mean KL (nats) from the trained model to its untrained base, where that was measured: what the training changed."""

    @property
    def off(self) -> float:
        """How far the result is from the trained model, of the way from there to the untrained base (0 where that is not known): for small
        differences a KL grows with the square of them."""
        return math.sqrt(self.figures.mean_kl / self.moved) if self.moved else 0.0

    def __str__(self) -> str:
        lost = f"; {self.off:.0%} of the way back to the untrained base" if self.off > NOTABLE else ""
        return f"{self.name}: {in_words(self.figures)}{lost} (usual: below {self.usual:g}{'; ' if self.how else ''}{self.how})"


@dataclass
class Evidence:
    """What a comparison of numbers leaves for the report: its hops, those that were not compared with the reason, and of the last
    file some positions."""

    hops: list[Hop] = field(default_factory=list)
    positions: list[Position] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def leave_out(self, hop: str, why: UserError, progress: Progress) -> None:
        """Note and say that a hop cannot be compared on this machine, and what would help."""
        self.missing.append(f"{hop}: not compared: {why.message}; {why.hint}")
        progress.finish("not compared")
        progress.say(f"warning: {self.missing[-1]}")


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
) -> list[Parity | None]:
    """Hop by hop on rows it was not trained on: the model as trained (base and what was learned) -> merged -> each GGUF in llama.cpp.

    None stands for a file that could not be compared on this machine, which is said. Raises ExportError when a hop changes the model; the
    merged folder or GGUF that is refuted is renamed, so that nothing takes it for a proved one. ``evidence`` is filled.
    """
    evidence = evidence if evidence is not None else Evidence()
    found = []
    reference, sequences = check_kept_merge(target, made[0].merged, progress, rows=rows, evidence=evidence)
    for one in made:
        try:
            found.append(check_file(one.file, one.level, reference, sequences, progress, evidence=evidence))
        except ExportError as error:
            raise _put_aside(one.file, error) from error
    return found


def check_kept_merge(
    target: Target, folder: Path, progress: Progress, *, rows: int = 8, evidence: Evidence | None = None
) -> tuple[Remembered | None, list[tuple[int, ...]]]:
    """``check_merge`` of a folder that has its name; one that is refuted loses it, so that nothing takes it again. Raises NotProvedError."""
    try:
        return check_merge(target, folder, progress, rows=rows, evidence=evidence)
    except MergeRefutedError as error:
        if record.read(folder) is None:  # not made here
            raise
        raise _put_aside(folder, error) from error


def _put_aside(place: Path, error: UserError) -> NotProvedError:
    """Rename what is refuted, with its record; the error that says so."""
    record_file = record.record_of(place)
    aside = set_aside(place, place)
    if record_file != place / record.NAME and record_file.exists():
        record_file.replace(record.record_of(aside))
    hint = f"{error.hint or 'do not use it'}; kept as {aside}"
    return NotProvedError(error.message, hint=hint, place=aside)


class MergeRefutedError(ExportError):
    """The merged model answers otherwise than the one that was trained."""


def check_file(
    file: Path,
    level: str,
    reference: Engine | None,
    sequences: Sequence[tuple[int, ...]],
    progress: Progress,
    *,
    name: str | None = None,
    evidence: Evidence | None = None,
) -> Parity | None:
    """One GGUF in llama.cpp against what the merged model (``reference``) tells about ``sequences``; ``name``: what it will be called.

    ``reference`` and the result are None when this machine cannot open the merged model. Raises ExportError for a model that is another one.
    """
    from tunesmith.chat.llamacpp import LlamaCppEngine
    from tunesmith.models.devices import usable_cores

    longest = max(map(len, sequences))
    finer = "" if level in ("f32", "bf16") else F16_ENDS if level == "f16" else TOO_COARSE
    figures = check_engine(
        lambda: LlamaCppEngine(file, n_ctx=longest, threads=usable_cores()), name or file.name, usual_kl(level), reference, sequences, progress,
        where=" in llama.cpp", finer=finer, evidence=evidence,
    )  # fmt: skip
    if figures is not None and figures.mean_kl > usual_kl(level) + _slack(reference):
        progress.say(
            f"warning: {level} changes this model more than usual (mean KL {figures.mean_kl:.2g}, usual below {usual_kl(level)}); "
            "f16 does not"
        )
    return figures


def check_engine(
    open_: Callable[[], Engine],
    name: str,
    usual: float,
    reference: Engine | None,
    sequences: Sequence[tuple[int, ...]],
    progress: Progress,
    *,
    where: str = "",
    finer: str = "",
    evidence: Evidence | None = None,
) -> Parity | None:
    """An export, opened by ``open_`` in the engine it is used with (``where``), against what the merged model tells about ``sequences``.

    ``usual``: mean KL (nats) that it usually stays below; ``finer``: what may help. ``reference`` and the result are None when this
    machine cannot open the merged model, which is said. Raises ExportError beyond ``BROKEN`` times the usual.
    """
    evidence = evidence if evidence is not None else Evidence()
    if reference is None:
        evidence.missing.append(f"merged → {name}{where}: not compared, since the merged model cannot be opened here")
        progress.say(f"warning: {evidence.missing[-1]}")
        return None
    progress.start(f"comparing {name}{where} with the merged model in transformers")
    try:
        other = Keeping(open_())
        try:
            figures = _parity(name, reference, other, sequences, finer)
            evidence.positions = kept_positions(reference, other, sequences)
        finally:
            other.close()
    except Exception as error:
        if not isinstance(error, NoRoomError) and not ran_out_of_memory(error):
            raise
        gone = error if isinstance(error, NoRoomError) else NoRoomError("it ran out of memory", hint=MORE)
        evidence.leave_out(f"merged → {name}{where}", gone, progress)
        return None
    slack, how = _slack(reference), getattr(reference, "how", "")
    evidence.hops.append(Hop(f"merged → {name}{where}", figures, usual + slack, how))
    if not figures.mean_kl <= BROKEN * usual + slack:
        raise ExportError(
            f"{name} does not answer as the merged model does: {in_words(figures)}",
            hint=f"usual is a mean KL below {usual + slack:g}{finer}",
        )
    progress.finish(in_words(figures))
    return figures


def _slack(reference: Engine | None) -> float:
    """Mean KL (nats) that the numbers the reference was computed in may add."""
    return float(getattr(reference, "slack", 0.0))


def _parity(
    name: str, reference: Engine, other: Engine, sequences: Sequence[tuple[int, ...]], finer: str = ""
) -> Parity:
    """``parity``; what cannot be compared (not-a-number, another vocabulary) is a failure of the file."""
    from tunesmith.evaluate.parity import parity

    try:
        return parity(reference, other, sequences)
    except UserError as error:
        raise ExportError(
            f"{name} does not answer as the merged model does: {error.message}", hint=f"{error.hint}{finer}"
        ) from error


def check_merge(
    target: Target, folder: Path, progress: Progress, *, rows: int = 8, evidence: Evidence | None = None
) -> tuple[Remembered | None, list[tuple[int, ...]]]:
    """The merged folder against the model as trained: its base with the learned weights beside it.

    Both are opened by what fits (``verbs.opening``), in fp32 where that is possible; the bound allows for what is not. Returns what the merged model
    tells about the probe sequences (None when it cannot be opened here) and these. What cannot be compared is said and noted in
    ``evidence``. Raises ExportError when the two are not the same model.
    """
    from tunesmith.evaluate.parity import Remembered, parity

    evidence = evidence if evidence is not None else Evidence()
    sequences = probe_tokens(target, folder, rows, progress)
    renderer = replace_folder(target, folder)
    keep = _place_for_distributions()

    def remembered(which: Target, name: str, hop: str, *, as_trained: bool = False) -> Remembered | None:
        def work(engine: Engine, way: Way) -> Remembered:
            found = Remembered(engine, keep, slack=way.slack, how="" if str(way) == "in fp32" else f"{name} {way}")
            for sequence in sequences:
                found.logprobs(sequence)
            return found

        try:
            return opened(which, renderer, name, sequences, work, progress, as_trained=as_trained)
        except NoRoomError as error:
            if hop:
                evidence.leave_out(hop, error, progress)
            return None

    merged = Target(target.name, replace(target.base, folder=folder))
    if target.learned is None:
        return remembered(merged, "model", f"{folder.name} → its exports"), sequences
    hop = "trained → merged"
    progress.start("comparing the merged model with the model as it was trained")
    whole = remembered(merged, "merged", hop)
    trained = remembered(target, "trained", hop) if whole is not None else None
    if whole is not None and trained is not None:
        numbers = learned_in(folder)
        figures = parity(trained, whole, sequences)
        told = (
            (record.read(folder) or {}).get("made_from", {}).get("numbers")
        )  # of weights learned in bf16 no type tells it
        exact = told == "F32" or is_exact(folder)
        bound = (EXACT_BOUND if exact or numbers is not None else MERGE_BOUND) + trained.slack + whole.slack
        moved = None
        if NOISE < figures.mean_kl <= bound and trained.slack == whole.slack == 0:
            base = remembered(replace(target, learned=None), "base", "")
            moved = _divergence(trained, base, sequences) if base is not None else None
            del base
        made = Hop(hop, figures, bound, "; ".join(one.how for one in (trained, whole) if one.how), moved)
        evidence.hops.append(made)
        if not figures.mean_kl <= bound or (made.off > MOST and exact):
            raise MergeRefutedError(
                f"{folder}: the merged model does not answer as the trained one does: {in_words(figures)}",
                hint=f"rounding alone stays below a mean KL of {bound:g}; do not use this folder, remove it and export again"
                + ("" if exact else "; with dtype=float32 (--to hf) nothing is rounded"),
            )
        progress.finish(in_words(figures))
        if made.off > NOTABLE:
            progress.say(f"{'WARNING' if made.off > MOST else 'warning'}: {_rounded_away(made, folder, numbers)}")
    del trained
    original = target.original
    quantize = target.config.model.quantize if target.config is not None else None
    if whole is not None and (original is not None or quantize is not None):
        hop = "trained on the quantized base → merged"
        progress.start("comparing it with the quantized base and adapter, as they were trained")
        as_it_was = remembered(replace(target, base=original or target.base), "as trained", hop, as_trained=True)
        if as_it_was is not None:
            difference = parity(as_it_was, whole, sequences)
            evidence.hops.append(Hop(hop, difference, quantized.QUANTIZED_BOUND, whole.how))
            progress.finish(in_words(difference))
            quantized.warn_of_difference(difference.mean_kl, progress)
    return whole, sequences


def _divergence(trained: Remembered, base: Remembered, sequences: Sequence[tuple[int, ...]]) -> float | None:
    """Mean KL (nats) of the untrained base from the trained model; None where the two cannot be compared (another vocabulary)."""
    from tunesmith.evaluate.parity import parity

    try:
        return parity(trained, base, sequences).mean_kl
    except UserError:
        return None


def _rounded_away(hop: Hop, folder: Path, numbers: str | None) -> str:
    from tunesmith.export.tensor_files import read_json

    kind = read_json(folder / "config.json").get("dtype", "its numbers") if numbers is None else "float16"
    part = "most" if hop.off > MOST else "a part"
    less = "with more room on the disk float32 is taken, which loses nothing"
    if numbers is None:
        less = "dtype=float32 loses nothing, dtype=float16 is 8 times finer in the same size; --to adapter and every other target are made without this rounding"
    return (
        f"{kind} is too coarse for what was learned and rounds {part} of it away: the merged model is {hop.off:.0%} as far from the trained "
        f"one as the untrained base is; {less}"
    )


def _place_for_distributions() -> Path | None:
    """Where distributions lie while they are compared; None (memory) when nothing can be written there."""
    try:
        home().mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return home()


def in_words(figures: Parity | None) -> str:
    """A line for people; None is what could not be compared."""
    if figures is None:
        return "numbers not compared"
    return f"mean KL {figures.mean_kl:.2g} nats, top-1 agreement {figures.top1_agreement:.1%} over {figures.positions} positions"
