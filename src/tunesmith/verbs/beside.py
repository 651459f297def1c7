"""What is written beside a GGUF for whoever gets it: model card, licences of the base, and for an adapter its Modelfile."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.config.progress import Progress
from tunesmith.evaluate.quality_rules import number, percent, size
from tunesmith.export.adapters import CONFIG
from tunesmith.export.beside import beside, modelfile_beside, write_beside
from tunesmith.export.companions import model_card
from tunesmith.export.facts import hub_name
from tunesmith.export.gguf_file import read_gguf
from tunesmith.export.gguf_levels import LEVELS
from tunesmith.export.modelfile import Modelfile
from tunesmith.export.tensor_files import read_json
from tunesmith.verbs.merged import slug
from tunesmith.verbs.provenance import provenance
from tunesmith.verbs.targets import Target

NO_BASE = "put-the-base-here"
"""In a Modelfile FROM a base whose name in Ollama nobody has told yet."""


def accompany(target: Target, file: Path, progress: Progress) -> None:
    """Write or renew what stands beside the GGUF ``file`` made of ``target``; what is not overwritten is said."""
    base = target.base.folder
    header = read_gguf(file).metadata
    is_adapter = header.get("general.type") == "adapter"
    kind = "GGUF of the adapter alone" if is_adapter else "GGUF"
    facts = [
        *provenance(target),
        *([] if target.run is not None or target.learned is None else [_learned(target.learned)]),
        f"{kind}: `{file.name}`, {size(file.stat().st_size)}",
        *_quality(target, file, header.get("general.file_type")),
        "made with Tunesmith",
    ]
    relation = "adapter" if is_adapter else "quantized" if target.learned is None else "finetune"
    name = hub_name(None, read_json(base / "config.json"), base)
    card = model_card(
        base, name, facts, library="", relation=relation, tags=["gguf", *(["lora"] if is_adapter else [])],
        more=_how_to_run(target, file, is_adapter),
    )  # fmt: skip
    for line in write_beside(file, base, card):
        progress.say(line)


def _learned(folder: Path) -> str:
    """What an adapter that comes from no run is."""
    if not (folder / CONFIG).is_file():
        return "weights trained in full, put into the base"
    told = read_json(folder / CONFIG)
    rank = f", rank {told['r']}" if isinstance(told.get("r"), int) else ""
    return f"{told.get('peft_type', 'LORA')} adapter{rank}, {folder.name}"


def _quality(target: Target, file: Path, file_type: Any) -> list[str]:
    """What the quality report says of this file, when it was measured."""
    from tunesmith.verbs.quality import quality_folder

    try:
        report = json.loads((quality_folder(target, file) / "quality.json").read_text(encoding="utf-8"))
        level = next(name for name, level in LEVELS.items() if level.file_type == file_type)
        known = (level, file.stat().st_size)
        one = next(one for one in report["exports"] if (one["name"], one["bytes"]) == known)
        lines = []
        for text, found in one["figures"].items():
            before = report["reference"]["figures"][text]["perplexity"]
            lines.append(
                f"{text}: perplexity {number(found['perplexity'])} ({percent(found['perplexity'] / before - 1)}), mean KL "
                f"{found['mean_kl']:.2g} nats, same likeliest token {found['top1']:.1%}"
            )
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return []
    return [f"against the 16-bit model, on {line}" for line in lines] + [f"quality: {one['verdict']}"]


def _how_to_run(target: Target, file: Path, is_adapter: bool) -> str:
    name = slug(target).lower()
    modelfile = beside(file).get("Modelfile")
    lines = [f"llama-server -m BASE.gguf --lora {file.name}" if is_adapter else f"llama-server -m {file.name}"]
    if modelfile is not None:
        lines.append(f"ollama create {name} -f {modelfile.name} && ollama run {name}")
    listed = "\n".join(lines)
    note = ""
    if is_adapter:
        note = (
            "\n`BASE.gguf` is the base above as a GGUF. In Ollama the base must be there already (`ollama list`): its name goes "
            "after FROM in the Modelfile.\n"
        )
    return f"## How to run it\n\nIn llama.cpp, or in Ollama:\n\n```\n{listed}\n```\n{note}"


def adapter_modelfile(
    target: Target, file: Path, told: Mapping[str, Any], on: str | None, progress: Progress
) -> tuple[Path, Modelfile, str]:
    """The Modelfile that puts the adapter ``file`` on Ollama's model ``on``, written beside it; returns where, its content, and how the
    template was found.

    ``told``: what the GGUF of the base says of itself. Without ``on`` the file says in its first lines what is to be filled in.
    """
    from tunesmith.verbs.gguf import modelfile_of, write_modelfile
    from tunesmith.verbs.targets import renderer_of

    renderer = renderer_of(target, progress=progress)
    adds_bos = bool(told.get("tokenizer.ggml.add_bos_token", False))
    content, reason = modelfile_of(renderer, target, target.base.folder, on or NO_BASE, adds_bos)
    content = replace(content, adapters=(f"./{file.name}",))
    place = modelfile_beside(file)
    head = ""
    if on is None:
        base = (
            hub_name(None, read_json(target.base.folder / "config.json"), target.base.folder) or target.base.folder.name
        )
        head = f"# In place of {NO_BASE}: the name that {base} has in Ollama (`ollama list`); the adapter works on no other model.\n"
    write_modelfile(place, content, progress, file, head)
    return place, content, reason


def adapter_beside(target: Target, file: Path, checks: Mapping[str, Any], progress: Progress) -> list[str]:
    """Modelfile, card and licences beside an adapter that was exported for nobody's Ollama yet; the lines that say how it gets there."""
    place, _, reason = adapter_modelfile(target, file, checks.get("base") or {}, None, progress)
    accompany(target, file, progress)
    command = f"tunesmith deploy {shlex.quote(target.name)} --as adapter --on NAME --name NEW-NAME"
    return [
        f"Modelfile: {place} ({reason}); in place of {NO_BASE} goes the base's name in Ollama",
        f"or in one command, with NAME the base in Ollama: {command}",
    ]
