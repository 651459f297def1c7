"""What a person means by RUN_OR_MODEL: a base, perhaps something learned on it, and the run it came from."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import ReferenceNotFoundError, UserError
from tunesmith.config.progress import SILENT, Progress
from tunesmith.data.config import DataConfig
from tunesmith.hub.names import check_run_point
from tunesmith.hub.reference import Reference, parse
from tunesmith.models.config import ModelConfig
from tunesmith.models.local import LocalModel, localize
from tunesmith.runs.folder import RunFolder, find_run, list_runs
from tunesmith.verbs.adapters import several_adapters
from tunesmith.verbs.run_config import TrainRun, config_of_run
from tunesmith.verbs.weights import is_adapter, is_part, open_begun, open_learned

if TYPE_CHECKING:
    import torch

    from tunesmith.chat.base import Engine
    from tunesmith.render.conversation import Renderer


@dataclass(frozen=True)
class Target:
    """A model that can be opened here. ``name`` is short, for headings and file names."""

    name: str
    base: LocalModel
    learned: Path | None = None
    """The folder with what was learned on the base (``verbs.weights``): an adapter, some weights, or a complete model."""
    run: RunFolder | None = None
    config: TrainRun | None = None
    original: LocalModel | None = None
    """What the adapter was trained on, when ``base`` was named in its place (the 16-bit original of a quantized base)."""

    @property
    def date(self) -> datetime.date | None:
        """The date its templates were trained with."""
        text = self.config.data.date if self.config is not None else None
        return datetime.date.fromisoformat(text) if text else None


def reference_of(text: str) -> Reference:
    """``text`` as a reference; a bare word or folder that is a run is that run. Raises UserError."""
    if text.startswith("run:"):
        return parse(text)
    bare = "/" not in text and ":" not in text and not Path(text).exists()
    if bare or (Path(text) / "config.yaml").is_file():
        word, _, point = text.partition("@")
        if not word:
            raise UserError(
                f"{text!r} names no run or model", hint="write a run's id, last, demo, ./folder or hf:org/name"
            )
        try:
            run = _last_trained() if word == "last" else find_run(word)
        except ReferenceNotFoundError:
            if text != "demo" and bare and "+" not in text:
                raise
        else:
            if text != "demo":
                if point:
                    check_run_point(point)
                return Reference("run", str(run.path) if "/" in word else run.id, point=point or None)
    return parse(text)


def _last_trained() -> RunFolder:
    """The newest run that has something to open; failed starts are passed over. Raises ReferenceNotFoundError."""
    return next((run for run in list_runs() if run.checkpoint_steps()), None) or find_run("last")


def target_of(text: str, progress: Progress) -> Target:
    """Base, learned weights and run of ``text``, downloaded if need be. Raises UserError for servers, which are no files."""
    reference = reference_of(text)
    if reference.kind in ("ollama", "url"):
        raise UserError(f"{text} is a server's model; here a run or a model's files are needed")
    if reference.kind != "run":
        if len(reference.adapters) > 1 or any(weight != 1 for _, weight in reference.adapters):
            base = localize(str(reference.base), progress)
            return Target(text, base, several_adapters(reference.adapters, progress))
        if reference.adapter is not None:
            base, adapter = localize(str(reference.base), progress), reference.adapter
            if adapter.kind == "run":
                of_run = target_of(str(adapter), progress)
                if of_run.learned is not None and not is_adapter(of_run.learned) and not is_part(of_run.learned):
                    raise UserError(
                        f"{adapter} learned all weights of its model, so it is not put on another base",
                        hint=f"use {adapter}",
                    )
                return Target(text, base, of_run.learned, of_run.run, of_run.config)
            if adapter.kind == "path" and is_part(adapter.path):
                return Target(text, base, adapter.path)
            from tunesmith.hub.resolve import resolve_adapter

            learned = resolve_adapter(adapter, progress).path
            if (other := _another_base(learned, base)) is not None:
                progress.say(
                    f"warning: {adapter} says that it was trained on {other}, and is put on {base.folder}; if that is another model it cannot be "
                    "told here: every comparison starts from the two as they are given"
                )
            return Target(text, base, learned)
        return Target(_short(text), localize(text, progress))
    run = find_run(reference.name)
    config = config_of_run(run)
    base = localize(config.model.ref, progress)
    if reference.point == "base":
        return Target(f"base of {run.id}", base, None, run, config)
    if reference.point == "best":
        return Target(f"{run.id}@best", base, run.best_checkpoint(), run, config)
    step = (
        int(reference.point.removeprefix("step-")) if reference.point and reference.point.startswith("step-") else None
    )
    return Target(run.id if step is None else f"{run.id}@step-{step}", base, run.checkpoint(step), run, config)


def _another_base(adapter: Path, base: LocalModel) -> str | None:
    """What an adapter calls its base, where that is by no reading the name of ``base``."""
    from tunesmith.export.facts import hub_name

    try:
        told = str(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"])
        raw = json.loads((base.folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    known = {_short(name).lower() for name in (str(base.folder), hub_name(None, raw, base.folder) or "")}
    same = _short(told).lower() in known or (Path(told).exists() and Path(told).samefile(base.folder))
    return None if same or told in ("", "None") else told


def _short(text: str) -> str:
    return text.rstrip("/").rpartition("/")[2] or text


def open_renderer(
    model: ModelConfig, data: DataConfig, progress: Progress, *, run: RunFolder | None = None
) -> tuple[LocalModel, Renderer]:
    """The local model of a config and the renderer training uses for it; a ``run`` renders with the template it keeps."""
    from tunesmith.models.vocabulary import tokenizer_with_tokens
    from tunesmith.render.conversation import Renderer
    from tunesmith.verbs.templates import kept_text, template_of

    local = localize(model.ref, progress)
    tokenizer, _ = tokenizer_with_tokens(local.folder, model)
    date = datetime.date.fromisoformat(data.date) if data.date else None
    template = template_of(tokenizer, model, kept_text(run))
    if template.reason:
        progress.say(template.reason)
    return local, Renderer(tokenizer, max_length=data.max_length, date=date, learn=data.learn, template=template.text)


def renderer_of(target: Target, *, exported: Path | None = None, progress: Progress = SILENT) -> Renderer:
    """The renderer of a target: its tokenizer, the template saved with its adapter or run, and the date of its run.

    ``exported``: a folder made from the target, whose own tokenizer and template are then taken.
    """
    from tunesmith.export.companions import find_template
    from tunesmith.render.conversation import Renderer
    from tunesmith.render.template import settle
    from tunesmith.verbs.templates import kept_text, template_of

    config = target.config
    tokenizer = _tokenizer_of(target, exported)
    saved = find_template(target.learned) if target.learned is not None and exported is None else None
    if saved is not None or exported is not None or config is None:
        template = settle(tokenizer, frozen=saved)
    else:
        template = template_of(tokenizer, config.model, kept_text(target.run))
    if template.reason:
        progress.say(template.reason)
    limit = config.data.max_length if config else None
    return Renderer(tokenizer, max_length=limit, date=target.date, template=template.text)


def _tokenizer_of(target: Target, exported: Path | None) -> Any:
    """The tokenizer of a folder made from the target; else the one saved with learned new tokens; else the base's own."""
    from tunesmith.models.changes import read_changes
    from tunesmith.models.open import open_tokenizer
    from tunesmith.models.vocabulary import tokenizer_with_tokens

    remote = target.config.model.trust_remote_code if target.config else False
    if exported is not None:
        return open_tokenizer(exported, trust_remote_code=remote)
    if target.learned is not None:
        has_own = bool(read_changes(target.learned).tokens)
        return open_tokenizer(target.learned if has_own else target.base.folder, trust_remote_code=remote)
    if target.config is not None:
        return tokenizer_with_tokens(target.base.folder, target.config.model)[0]
    return open_tokenizer(target.base.folder)


def open_weights(
    target: Target, *, precision: str = "auto", as_trained: bool = True, device: torch.device | None = None
) -> Any:
    """The model of a target on ``device`` (default: the best one), with what was learned.

    The base of a run that added tokens has their rows as they were at the beginning, so that both can be asked the same.
    Its positions are not stretched: it is the model as it was. A base that the
    run quantized is quantized here too; not with ``as_trained=False``, for folders made from it.
    """

    from tunesmith.models.devices import best_device, dtype_for, set_threads
    from tunesmith.models.precision import resolve_precision

    set_threads()
    device = device or best_device()
    if precision == "auto" and target.config is not None:
        precision = target.config.precision
    precision, _ = resolve_precision(precision, device)
    dtype = dtype_for(precision, device)
    remote = target.config.model.trust_remote_code if target.config else False
    quantize = target.config.model.quantize if target.config and as_trained else None
    if target.learned is not None:
        return open_learned(
            target.base.folder, target.learned, dtype=dtype, device=device, trust_remote_code=remote, quantize=quantize
        )
    begun = target.config.model if target.config is not None else ModelConfig(ref=str(target.base.folder))
    begun = begun.model_copy(update={"rope": None, "quantize": quantize})
    return open_begun(target.base.folder, begun, dtype=dtype, device=device)[0]


def open_engine(text: str, progress: Progress, *, name: str | None = None) -> Engine:
    """Something that answers, from any reference: a run, a model, a GGUF (perhaps with a GGUF adapter), or a model behind a server."""
    reference = reference_of(text)
    if reference.kind == "ollama":
        from tunesmith.chat.ollama_api import remote_warning
        from tunesmith.chat.ollama_engine import OllamaEngine

        served = OllamaEngine(reference.name)
        if (warning := remote_warning(served.url)) is not None:
            progress.say(f"warning: {warning}")
        return served
    if reference.kind == "url":
        from tunesmith.chat.openai_engine import OpenAIEngine

        asked = OpenAIEngine(str(reference.url), reference.name, name=name or text)
        if asked.warning:
            progress.say(f"warning: {asked.warning}")
        return asked
    adapter = reference.adapter
    as_gguf = adapter is not None and adapter.kind == "path" and adapter.path.suffix == ".gguf"
    if reference.kind == "path" and reference.path.suffix == ".gguf" and (adapter is None or as_gguf):
        from tunesmith.chat.llamacpp import LlamaCppEngine

        change = adapter.path if adapter is not None else None
        return LlamaCppEngine(
            reference.path, adapter=change, name=name or (reference.path.name if change is None else text)
        )
    if as_gguf:
        raise UserError(
            f"{text}: an adapter as GGUF is put on a base as GGUF, {reference.base} is none",
            hint="use the folder of the adapter with this base, or the base as a .gguf file",
        )
    from tunesmith.chat.transformers_engine import TransformersEngine

    target = target_of(text, progress)
    progress.start(f"opening {target.name}")
    engine = TransformersEngine(open_weights(target), renderer_of(target, progress=progress), name or text)
    progress.finish()
    return engine
