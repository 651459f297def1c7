"""The whole model of a run or model: its base with what was learned in it, made once and kept with the run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError
from tunesmith.config.plugins import load as load_plugin
from tunesmith.config.progress import Progress
from tunesmith.export.base import Report
from tunesmith.verbs.provenance import provenance
from tunesmith.verbs.taken import made_from, taken_or_made
from tunesmith.verbs.targets import Target, open_weights, renderer_of

TARGETS = "tunesmith.export.targets"
QUESTION = "What is the capital of France?"
ANSWER_TOKENS = 32
SPACE = 1.2
"""Times the size of its weights that a model takes while it is asked."""


def slug(target: Target) -> str:
    """A short file name for a target."""
    name = target.config.output.name if target.config is not None and target.config.output.name else target.name
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:60] or "model"


def merged_folder(target: Target, progress: Progress) -> Path:
    """The whole model of a target in the base's numbers: the base as it is, or with what was learned (kept with the run, made once).

    One that lies there is taken when it was made from this base and this adapter (``verbs.taken``).
    """
    if target.learned is None:
        return target.base.folder
    learned = target.learned
    parent = target.run.artifacts if target.run is not None else Path.cwd()
    out = parent / f"merged-{learned.name}"
    hf = load_plugin(TARGETS, "hf")
    config = hf.Config()

    def make(place: Path) -> Report:
        from tunesmith.render.stop import stop_token_ids

        stops = stop_token_ids(renderer_of(target))
        made: Report = hf.export(
            learned, place, config, progress, base=target.base.folder, stop_token_ids=stops, told=provenance(target)
        )
        return made

    return taken_or_made(out, made_from(target, hf, config), make, progress).report.out


def prove(target: Target, folder: Path, progress: Progress) -> dict[str, Any]:
    """The finished model or adapter in ``folder`` compared with ``target`` as it was trained, and asked. Returns figures for the report.

    A model that does not fit into memory is not opened; the report says so. Raises ExportError when it answers otherwise.
    """
    from tunesmith.models.devices import best_device, memory
    from tunesmith.verbs.proof import check_merge

    if (folder / "adapter_config.json").is_file():
        return _prove_adapter(target, folder, progress)
    size, free = sum(p.stat().st_size for p in folder.glob("*.safetensors")), memory(best_device()).free
    if size * SPACE > free:
        words = f"it needs {size * SPACE / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        progress.say(f"warning: the model was loaded without its weights only: {words}")
        return {"answer": f"not asked: {words}"}
    found: dict[str, Any] = {}
    whole = size * 4 // _item_bytes(folder)  # the comparison computes in fp32, one model at a time
    if target.learned is not None and whole * SPACE <= free:
        check_merge(target, folder, progress)
        found["compared"] = "with base and learned weights as trained"
    elif target.learned is not None:
        words = f"in fp32 it needs {whole * SPACE / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        progress.say(f"warning: not compared with the model as trained: {words}")
        found["compared"] = f"not: {words}"
    question, answer = ask(target, folder, progress)
    return found | {"asked": question, "answer": answer}


def _prove_adapter(target: Target, folder: Path, progress: Progress) -> dict[str, Any]:
    """The adapter in ``folder`` on the untouched base against ``target`` as it was trained, both in fp32. Raises ExportError."""
    from tunesmith.chat.transformers_engine import TransformersEngine
    from tunesmith.evaluate.parity import Remembered, parity
    from tunesmith.models.devices import best_device, memory
    from tunesmith.verbs.proof import MERGE_BOUND, in_words, probe_tokens

    size = (
        sum(p.stat().st_size for p in target.base.folder.glob("*.safetensors")) * 4 // _item_bytes(target.base.folder)
    )
    free = memory(best_device()).free
    if size * SPACE > free:
        words = f"in fp32 the model needs {size * SPACE / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        progress.say(f"warning: the adapter was not compared with the model as trained: {words}")
        return {"compared": f"not: {words}"}
    sequences = probe_tokens(target, target.base.folder, 8)
    progress.start("comparing the exported adapter with the model as it was trained")
    found = []
    for which in (target, replace(target, learned=folder)):
        engine = TransformersEngine(
            open_weights(which, precision="fp32", as_trained=False), renderer_of(target), target.name
        )
        found.append(Remembered(engine))
        for sequence in sequences:
            found[-1].logprobs(sequence)
        engine.close()
    figures = parity(found[0], found[1], sequences)
    if not figures.mean_kl <= MERGE_BOUND:
        raise ExportError(f"the exported adapter does not answer as the trained model does: {in_words(figures)}")
    progress.finish(in_words(figures))
    return {"compared": f"with base and learned weights as trained: {in_words(figures)}"}


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


def _item_bytes(folder: Path) -> int:
    dtype = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("dtype")
    return {"float32": 4, "float64": 8}.get(str(dtype), 2)
