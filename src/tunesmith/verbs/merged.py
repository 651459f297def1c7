"""The whole model of a run or model: its base with what was learned in it, made once and kept with the run."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError
from tunesmith.config.plugins import load as load_plugin
from tunesmith.config.progress import Progress
from tunesmith.export import record
from tunesmith.export.base import Report, again, partial_of, size_of
from tunesmith.export.fingerprint import of_folder
from tunesmith.export.numbers import FLOATS
from tunesmith.export.tensor_files import ITEM_BYTES, read_model
from tunesmith.verbs.provenance import provenance
from tunesmith.verbs.taken import made_from, taken_or_made
from tunesmith.verbs.targets import Target, open_weights, renderer_of

TARGETS = "tunesmith.export.targets"
QUESTION = "What is the capital of France?"
ANSWER_TOKENS = 32


def slug(target: Target) -> str:
    """A short file name for a target."""
    name = target.config.output.name if target.config is not None and target.config.output.name else target.name
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:60] or "model"


NUMBERS = ("F32", "F16")
"""What a merged model that something else is made of holds learned weights in: as exact as they were learned, or where the disk has no
room for that, in as many bytes as the base's and up to 8 times finer (``export.numbers``)."""


_decided: dict[Path, str] = {}
"""What a command has decided on for a folder: its first question knows all that will be made, later ones ask for one level each."""


def merged_folder(target: Target, progress: Progress, *, beside: int = 0) -> Path:
    """The whole model of a target: the base as it is, or with what was learned, unrounded (kept with the run, made once).

    One that lies there is taken when it was made from this base and this adapter (``verbs.taken``). ``beside``: bytes that will be made of
    it, for which there must be room as well.
    """
    if target.learned is None:
        return target.base.folder
    learned = target.learned
    parent = target.run.artifacts if target.run is not None else Path.cwd()
    own = "" if target.run is not None else f"-{of_folder(learned)[:8]}"  # other adapters have that folder name too
    out = parent / f"merged-{learned.name}{own}"
    hf = load_plugin(TARGETS, "hf")
    config = hf.Config()
    plain = made_from(target, hf, config)
    whole = out.exists() and record.difference(out, plain | {"numbers": NUMBERS[0]}) is None
    if whole:
        numbers = NUMBERS[0]
    elif out in _decided and out.exists():
        numbers = _decided[out]
    else:
        numbers = _decided[out] = _numbers_for(target.base.folder, out, beside, progress)

    def make(place: Path) -> Report:
        from tunesmith.render.stop import stop_token_ids

        stops = stop_token_ids(renderer_of(target))
        made: Report = hf.export(
            learned, place, config, progress, base=target.base.folder, stop_token_ids=stops, told=provenance(target),
            learned_in=numbers,
        )  # fmt: skip
        return made

    return taken_or_made(out, plain | {"numbers": numbers}, make, progress).report.out


def _numbers_for(base: Path, out: Path, beside: int, progress: Progress) -> str:
    """float32 where the disk holds the whole model so, and what is made of it: half as much again, or ``beside`` bytes if that is more."""
    exact = sum(math.prod(t.shape) * ITEM_BYTES["F32"] for t in read_model(base).values() if t.dtype in FLOATS)
    at = next(p for p in [out.parent, *out.parent.parents] if p.exists())
    begun = [place for place in (partial_of(out), partial_of(again(out))) if place.exists()]
    free = shutil.disk_usage(at).free + sum(map(size_of, begun))
    if free > exact + max(exact // 2, int(1.05 * beside)) + 2**28:
        return NUMBERS[0]
    progress.say(
        f"{at} has {free / 1e9:.1f} GB free: the merged model is kept in float16 instead of float32, where very small changes are rounded away"
    )
    return NUMBERS[1]


def prove(target: Target, folder: Path, progress: Progress) -> dict[str, Any]:
    """The finished model or adapter in ``folder`` compared with ``target`` as it was trained, and asked. Returns figures for the report.

    What this machine has no memory for is said and stands in the report. Raises ExportError when it answers otherwise.
    """
    from tunesmith.verbs.opening import NoRoomError, ran_out_of_memory, room_to_ask
    from tunesmith.verbs.proof import NOTABLE, Evidence, check_merge, in_words

    if (folder / "adapter_config.json").is_file():
        return _prove_adapter(target, folder, progress)
    found: dict[str, Any] = {}
    if target.learned is not None:
        evidence = Evidence()
        check_merge(target, folder, progress, evidence=evidence)
        hop = next((hop for hop in evidence.hops if hop.name == "trained → merged"), None)
        found["compared"] = (
            f"with base and learned weights {_as(target)}: {in_words(hop.figures)}{', ' if hop.how else ''}{hop.how}"
            if hop
            else evidence.missing[0]
        )
        if hop is not None and hop.off > NOTABLE:
            found["rounded away"] = f"{hop.off:.0%} of the way back from the trained model to the untrained base"
    try:
        room_to_ask(Target(target.name, replace(target.base, folder=folder)))
        question, answer = ask(target, folder, progress)
    except Exception as error:
        if not isinstance(error, NoRoomError) and not ran_out_of_memory(error):
            raise
        words = error.message if isinstance(error, NoRoomError) else "it ran out of memory"
        progress.say(f"warning: the model was loaded without its weights only, and not asked: {words}")
        return found | {"answer": f"not asked: {words}"}
    return found | {"asked": question, "answer": answer}


def _as(target: Target) -> str:
    """Only of a run is it known what its base was."""
    return "as trained" if target.run is not None else "as they are given"


def _prove_adapter(target: Target, folder: Path, progress: Progress) -> dict[str, Any]:
    """The adapter in ``folder`` on the untouched base against ``target`` as it was trained. Raises ExportError."""
    from tunesmith.chat.base import Engine
    from tunesmith.evaluate.parity import Remembered, parity
    from tunesmith.verbs.opening import NoRoomError, Way, opened
    from tunesmith.verbs.probe_rows import probe_tokens
    from tunesmith.verbs.proof import MERGE_BOUND, in_words

    sequences = probe_tokens(target, target.base.folder, 8, progress)

    def work(engine: Engine, way: Way) -> Remembered:
        known = Remembered(engine, slack=way.slack, how=str(way))
        for sequence in sequences:
            known.logprobs(sequence)
        return known

    progress.start("comparing the exported adapter with the model as it was trained")
    try:
        first, second = (
            opened(which, renderer_of(target), target.name, sequences, work, progress)
            for which in (target, replace(target, learned=folder))
        )
    except NoRoomError as error:
        words = f"not compared: {error.message}"
        progress.finish("not compared")
        progress.say(f"warning: the adapter was {words}; {error.hint}")
        return {"compared": words}
    figures = parity(first, second, sequences)
    if not figures.mean_kl <= MERGE_BOUND + first.slack + second.slack:
        raise ExportError(f"the exported adapter does not answer as the trained model does: {in_words(figures)}")
    progress.finish(in_words(figures))
    how = "" if first.how == second.how == "in fp32" else f" ({first.how}, {second.how})"
    return {"compared": f"with base and learned weights {_as(target)}: {in_words(figures)}{how}"}


def ask(target: Target, folder: Path, progress: Progress) -> tuple[str, str]:
    """A question and the answer of the model in ``folder``, token by token the most likely one."""
    from tunesmith.chat.base import Sampling
    from tunesmith.chat.transformers_engine import TransformersEngine

    question = _question(target)
    progress.start("asking the exported model")
    merged = Target(target.name, replace(target.base, folder=folder))
    engine = TransformersEngine(open_weights(merged), renderer_of(target, exported=folder), target.name)
    try:
        pieces = engine.stream([{"role": "user", "content": question}], Sampling(max_tokens=ANSWER_TOKENS))
        answer = " ".join("".join(pieces).split())
    finally:
        engine.close()
    progress.finish(f"{question!r}: {answer!r}")
    return question, answer


def _question(target: Target) -> str:
    """One that the run answered while it was trained, if it did; else one of our own."""
    if target.run is not None:
        try:
            with (target.run.artifacts / "samples.jsonl").open(encoding="utf-8") as file:
                return str(json.loads(file.readline())["prompt"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
    return QUESTION
