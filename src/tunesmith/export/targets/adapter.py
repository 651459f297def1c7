"""``--to adapter``: what a run learned as a clean adapter folder in peft's format, for peft, vLLM and the Hub.

Nothing of the training (optimizer, masters, random states) travels along. The folder works on the untouched base: adapters
that were learned on top of others become one with them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.errors import ExportError
from tunesmith.config.progress import SILENT, Progress
from tunesmith.export import companions, trained
from tunesmith.export.adapter_check import check_adapter, why_not_vllm
from tunesmith.export.adapters import CONFIG, WEIGHTS, combined, read_adapters
from tunesmith.export.base import Report, check_target, size_of, whole_or_nothing
from tunesmith.export.facts import facts, hub_name, hub_place, origin_of
from tunesmith.export.model_config import load_config, tied_names
from tunesmith.export.targets import hf
from tunesmith.export.tensor_files import read_header, read_json, read_model
from tunesmith.models.adapters.chain import merged_first
from tunesmith.models.adapters.combine import combine, why_not
from tunesmith.models.changes import Changes, read_changes

SOURCE = "learned"
"""It takes what was learned, not the merged model."""


class Config(BaseConfig):
    """The adapter alone, in peft's format, for the model it was learned on."""


def export(
    source: Path,
    out: Path,
    config: Config,
    progress: Progress = SILENT,
    *,
    base: Path | None = None,
    stop_token_ids: Sequence[int] = (),
    chat_template: str | None = None,
    told: Sequence[str] = (),
    prove: Callable[[Path], dict[str, Any]] | None = None,
) -> Report:
    """Write the adapter in ``source``, learned on ``base``, to the new folder ``out``.

    ``told`` are more lines for its card, ``prove`` is asked about the folder before it gets its name. ``stop_token_ids`` are not
    needed here: the base keeps its own. Raises ExportError, also for what is no adapter; then ``out`` does not exist.
    """
    _check_source(source)
    changes = read_changes(source)
    if changes:
        what = "new tokens" if changes.tokens else "positions that were stretched"
        raise ExportError(
            f"{source} has {what}, so the adapter alone does not work on its base",
            hint="export the whole model: --to hf",
        )
    needed = merged_first(source)
    whole = [reason for one in (*needed, source) if (reason := why_not(one, chain=True))] if needed else []
    if whole:
        raise ExportError(
            f"{source} was learned on top of other adapters and cannot become one with them: {whole[0]}",
            hint="export the whole model: --to hf",
        )
    adapters = read_adapters(source)
    folder = hf.base_folder(source, base, adapters[0].base, alone=False)
    stored = read_model(folder)
    adapter = combined(adapters, folder, stored)
    hf.plan(stored, adapter, tied_names(load_config(folder)))  # raises when the two do not belong together
    check_target(out, 2 * sum((one / WEIGHTS).stat().st_size for one in (*needed, source)) + 2**26)
    template = chat_template or companions.find_template(source) or companions.find_template(folder)
    raw = read_json(folder / "config.json")
    name = hub_name(adapters[0].base, raw, folder)
    with whole_or_nothing(out) as work:
        work.mkdir()
        progress.start("adapter")
        if needed:
            combine([(one, 1.0) for one in (*needed, source)], work, chain=True)
        else:
            _copy_learned(source / WEIGHTS, work / WEIGHTS)
        # a dequantized base is not the model of that name, number by number: the adapter belongs to the folder
        known = name if origin_of(folder) == folder else None
        settings = _settings(read_json((work if needed else source) / CONFIG), known, folder)
        (work / CONFIG).write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        companions.copy_tokenizer(folder, work)
        companions.write_template(folder, work, template)
        companions.copy_licences([folder, source], work)
        done = [*told, *facts(adapter, None, Changes(), len(adapter.changes), settings.get("peft_type"), merged=False)]
        card = companions.model_card(folder, name, done, library="peft", more=companions.HOW_TO_RUN_ADAPTER)
        (work / "README.md").write_text(card, encoding="utf-8")
        checks = check_adapter(work, folder, template)
        checks |= prove(work) if prove is not None else {}
        companions.write_checksums(work, {})
        progress.finish()
    notes = (
        [] if known else [f"the base has no name on a hub: the adapter names it {settings['base_model_name_or_path']}"]
    )
    if (reason := why_not_vllm(settings)) is not None:
        notes.append(f"vLLM does not take this adapter as it is: {reason}; it takes the whole model (--to hf)")
    for note in notes:
        progress.say(f"warning: {note}")
    return Report(out, size_of(out), {"weights": len(adapter.changes), "joined": len(needed), **checks}, tuple(notes))


def _check_source(source: Path) -> None:
    if not (source / CONFIG).is_file():
        what = "some weights of the model" if trained.is_part(source) else "all weights of the model"
        raise ExportError(
            f"{source} holds no adapter: {what} were learned" if source.is_dir() else f"{source} is not a folder",
            hint="export the whole model: --to hf",
        )


def _copy_learned(source: Path, out: Path) -> None:
    """The learned numbers as they are, without the copies of the base's embeddings that peft saves beside a LoRA on them."""
    from safetensors.torch import load_file, save_file

    header = read_header(source)
    if not any(".base_layer." in name for name in header):
        shutil.copyfile(source, out)
        return
    save_file({n: t for n, t in load_file(source).items() if ".base_layer." not in n}, out, metadata={"format": "pt"})


def _settings(config: dict[str, Any], name: str | None, base: Path) -> dict[str, Any]:
    """adapter_config.json for others: the base by its name on a hub, nothing of this machine."""
    found = {key: value for key, value in config.items() if key not in ("auto_mapping", "runtime_config")}
    found["inference_mode"] = True
    if name:
        place = hub_place(base)
        found["base_model_name_or_path"] = name
        found["revision"] = place[1] if place and place[0] == name and len(place[1]) == 40 else None
    else:
        found["base_model_name_or_path"] = config.get("base_model_name_or_path") or str(base)
    return found
