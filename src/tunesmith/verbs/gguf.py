"""The GGUF of a run or model, with its Modelfile beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.config.base import Config
from tunesmith.config.errors import ExportError
from tunesmith.config.progress import Progress
from tunesmith.export.base import Report
from tunesmith.export.beside import modelfile_beside, renew
from tunesmith.export.modelfile import Modelfile
from tunesmith.hub.licences import licence_files, text_of
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs.beside import accompany
from tunesmith.verbs.calibration import context_limit
from tunesmith.verbs.making import config_of, make, plugin_of
from tunesmith.verbs.reference import MergedReference
from tunesmith.verbs.rows import SYSTEM
from tunesmith.verbs.targets import Target, renderer_of


@dataclass(frozen=True)
class GgufExport:
    """A GGUF of numbers ``level`` with its Modelfile; ``merged`` is the folder it was made from.

    ``content`` is what a server is told; ``left_out``: what of it the file ``modelfile`` cannot hold, in words. ``fresh``: it was made now,
    and not taken as it was there.
    """

    level: str
    file: Path
    modelfile: Path
    merged: Path
    content: Modelfile
    template_reason: str
    report: Report
    left_out: tuple[str, ...] = ()
    fresh: bool = True


def gguf(
    target: Target,
    progress: Progress,
    *,
    level: str = "f16",
    config: Config | None = None,
    out: Path | None = None,
    data: str | None = None,
    reuse: bool = False,
    trial: bool = False,
    given: Mapping[str, Any] | None = None,
    reference: MergedReference | None = None,
) -> GgufExport:
    """The GGUF of a target with a Modelfile beside it, of ``level`` or by a whole ``config`` of the target gguf.

    ``reuse``, ``data``, ``trial``, ``given``, ``reference``: see ``verbs.making.make``.
    """
    plugin = plugin_of("gguf")
    if config is None:
        config = config_of(plugin, level=level)
    made = make(
        target, plugin, config, progress, out=out, data=data, reuse=reuse, trial=trial, given=given, reference=reference
    )
    assert made.merged is not None
    content, reason = modelfile_for(target, made.merged, made.place)
    place = modelfile_beside(made.place)
    left_out = write_modelfile(place, content, progress, made.place)
    accompany(target, made.place, progress)
    return GgufExport(
        str(getattr(config, "level", level)),
        made.place,
        place,
        made.merged,
        content,
        reason,
        made.report,
        left_out,
        made.fresh,
    )


def write_modelfile(place: Path, content: Modelfile, progress: Progress, file: Path, head: str = "") -> tuple[str, ...]:
    """Write the Modelfile of the GGUF ``file``, ``head`` first; one that was changed by hand is kept (``export.beside.renew``). A licence or system prompt that its format cannot hold is left out of it; returned, said and noted in it in words.

    A server that is told over the network gets both whole.
    """
    left_out: list[str] = []

    def held(part: Modelfile) -> bool:
        try:
            part.render()
        except ExportError as error:
            left_out.append(f"{error.message}: left out of this file; `tunesmith deploy` sends it whole")
            return False
        return True

    alone = Modelfile(content.from_)
    if not held(replace(alone, license=content.license)):
        content = replace(content, license=None)
    if not held(replace(alone, system=content.system)):
        content = replace(content, system=None)
    for line in left_out:
        progress.say(f"{place.name}: {line}")
    if said := renew(file, place, head + "".join(f"# {line}\n" for line in left_out) + content.render()):
        progress.say(said)
    return tuple(left_out)


def trained_system(target: Target) -> str | None:
    """The system prompt that every row had which ``target`` learned from, as its run wrote it down; None for all others."""
    return None if target.run is None or target.learned is None else system_of(target.run)


def system_of(run: RunFolder) -> str | None:
    """The system prompt of all rows that a run learned from, when they had one and the same."""
    try:
        kept = json.loads((run.path / "rows.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept.get(SYSTEM) or None


def modelfile_for(target: Target, merged: Path, gguf_file: Path) -> tuple[Modelfile, str]:
    """The Modelfile of a merged model: template found by comparison, the system prompt of all its training, stops, context length,
    sampling, licence."""
    from tunesmith.export.gguf_file import read_gguf

    adds_bos = bool(read_gguf(gguf_file).metadata.get("tokenizer.ggml.add_bos_token", False))
    return modelfile_of(replace_folder(target, merged), target, merged, f"./{gguf_file.name}", adds_bos)


def modelfile_of(renderer: Any, target: Target, merged: Path, from_: str, adds_bos: bool) -> tuple[Modelfile, str]:
    """The same for a model that Ollama knows as ``from_``; ``merged`` holds its config, its sampling settings and its licence."""
    from tunesmith.export.go_template import choose, model_template
    from tunesmith.render.stop import end_of_turn_token

    tokenizer = renderer.tokenizer
    choice = choose(
        lambda messages, generation: renderer.text(messages, generation=generation),
        (tokenizer.bos_token or "") if adds_bos else "",
        model_template(renderer),
    )
    parameters: dict[str, Any] = {}
    turn = end_of_turn_token(renderer)
    stops = list(choice.template.stop) if choice.template is not None else []
    if turn is not None and turn[1] not in stops:
        stops.insert(0, turn[1])
    if stops:
        parameters["stop"] = stops
    limit = context_limit(merged)
    wanted = max(4096, target.config.data.max_length if target.config is not None else 0)
    parameters["num_ctx"] = min(wanted, limit) if limit else wanted
    parameters |= _sampling(merged)
    licence = "\n\n".join(filter(None, map(text_of, licence_files(merged)))) or None
    content = Modelfile(
        from_=from_, template=choice.template.text if choice.template is not None else None,
        system=trained_system(target), parameters=parameters, license=licence,
    )  # fmt: skip
    return content, choice.reason


def replace_folder(target: Target, folder: Path) -> Any:
    """The renderer of the exported folder itself: what is served is rendered from what was exported."""
    return renderer_of(target, exported=folder)


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
