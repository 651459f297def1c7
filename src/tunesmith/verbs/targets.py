"""What a person means by RUN_OR_MODEL: a base, perhaps an adapter on it, and the run it came from."""

from __future__ import annotations

import datetime
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
from tunesmith.verbs.run_config import TrainRun, config_of_run

if TYPE_CHECKING:
    from tunesmith.chat.base import Engine
    from tunesmith.render.conversation import Renderer


@dataclass(frozen=True)
class Target:
    """A model that can be opened here. ``name`` is short, for headings and file names."""

    name: str
    base: LocalModel
    adapter: Path | None = None
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
    """Base, adapter and run of ``text``, downloaded if need be. Raises UserError for servers, which are no files."""
    reference = reference_of(text)
    if reference.kind in ("ollama", "url"):
        raise UserError(f"{text} is a server's model; here a run or a model's files are needed")
    if reference.kind != "run":
        if reference.adapter is not None:
            base, adapter = localize(str(reference.base), progress), reference.adapter
            if adapter.kind == "run":
                of_run = target_of(str(adapter), progress)
                return Target(text, base, of_run.adapter, of_run.run, of_run.config)
            from tunesmith.hub.resolve import resolve_adapter

            return Target(text, base, resolve_adapter(adapter, progress).path)
        return Target(_short(text), localize(text, progress))
    run = find_run(reference.name)
    config = config_of_run(run)
    base = localize(config.model.ref, progress)
    if reference.point == "base":
        return Target(f"base of {run.id}", base, None, run, config)
    if reference.point == "best":
        raise UserError(
            "@best is not kept yet", hint=f"checkpoints of {run.id}: {_listed(run)}; write run:{run.id}@step-N"
        )
    step = (
        int(reference.point.removeprefix("step-")) if reference.point and reference.point.startswith("step-") else None
    )
    return Target(run.id if step is None else f"{run.id}@step-{step}", base, run.checkpoint(step), run, config)


def _listed(run: RunFolder) -> str:
    return ", ".join(f"step-{s}" for s in run.checkpoint_steps()) or "none"


def _short(text: str) -> str:
    return text.rstrip("/").rpartition("/")[2] or text


def open_renderer(
    model: ModelConfig, data: DataConfig, progress: Progress, *, run: RunFolder | None = None
) -> tuple[LocalModel, Renderer]:
    """The local model of a config and the renderer training uses for it; a ``run`` renders with the template it keeps."""
    from tunesmith.models.open import open_tokenizer
    from tunesmith.render.conversation import Renderer
    from tunesmith.verbs.templates import kept_text, template_of

    local = localize(model.ref, progress)
    tokenizer = open_tokenizer(local.folder, trust_remote_code=model.trust_remote_code)
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
    from tunesmith.models.open import open_tokenizer
    from tunesmith.render.conversation import Renderer
    from tunesmith.render.template import settle
    from tunesmith.verbs.templates import kept_text, template_of

    config = target.config
    remote = config.model.trust_remote_code if config else False
    tokenizer = open_tokenizer(exported or target.base.folder, trust_remote_code=remote)
    saved = find_template(target.adapter) if target.adapter is not None and exported is None else None
    if saved is not None or exported is not None or config is None:
        template = settle(tokenizer, frozen=saved)
    else:
        template = template_of(tokenizer, config.model, kept_text(target.run))
    if template.reason:
        progress.say(template.reason)
    limit = config.data.max_length if config else None
    return Renderer(tokenizer, max_length=limit, date=target.date, template=template.text)


def open_weights(target: Target, *, precision: str = "auto", as_trained: bool = True) -> Any:
    """The model of a target on the best device, its adapter on it.

    The base is quantized as the run quantized it; not with ``as_trained=False``, for folders made from it.
    """
    import torch

    from tunesmith.models.devices import best_device, set_threads
    from tunesmith.models.open import open_model
    from tunesmith.models.precision import resolve_precision

    set_threads()
    device = best_device()
    if precision == "auto" and target.config is not None:
        precision = target.config.precision
    precision, _ = resolve_precision(precision, device)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    remote = target.config.model.trust_remote_code if target.config else False
    quantize = target.config.model.quantize if target.config and as_trained else None
    model = open_model(target.base.folder, dtype=dtype, device=device, trust_remote_code=remote, quantize=quantize)
    if target.adapter is None:
        return model
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(target.adapter), autocast_adapter_dtype=False)
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(
            f"{target.adapter}: the adapter does not fit {target.base.folder}: {str(error).splitlines()[0]}"
        ) from error


def open_engine(text: str, progress: Progress, *, name: str | None = None) -> Engine:
    """Something that answers, from any reference: a run, a model, a GGUF, or a model in Ollama."""
    reference = reference_of(text)
    if reference.kind == "ollama":
        from tunesmith.chat.ollama_engine import OllamaEngine

        return OllamaEngine(reference.name)
    if reference.kind == "url":
        raise UserError(f"{text}: OpenAI-style servers cannot be asked yet", hint="use ollama:NAME, a run or a model")
    if reference.kind == "path" and reference.path.suffix == ".gguf":
        from tunesmith.chat.llamacpp import LlamaCppEngine

        return LlamaCppEngine(reference.path, name=name or reference.path.name)
    from tunesmith.chat.transformers_engine import TransformersEngine

    target = target_of(text, progress)
    progress.start(f"opening {target.name}")
    engine = TransformersEngine(open_weights(target), renderer_of(target, progress=progress), name or text)
    progress.finish()
    return engine
