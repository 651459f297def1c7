"""The template of a run: chosen once, kept in its folder, saved with every checkpoint. And ``tunesmith data templates``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.files import write_atomic
from tunesmith.config.load import save
from tunesmith.config.progress import Progress
from tunesmith.models.config import ModelConfig
from tunesmith.models.local import localize
from tunesmith.render.template import FILE, Settled, baked, is_path, read_template, settle
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs.run_config import TrainRun

if TYPE_CHECKING:
    from tunesmith.render.named import NamedTemplate


def absolute_choice(model: ModelConfig) -> ModelConfig:
    """``model`` with the path of its template absolute, so that it means the same from anywhere."""
    if model.template is None or not is_path(model.template):
        return model
    return model.model_copy(update={"template": str(Path(model.template).expanduser().absolute())})


def keep_text(run: RunFolder, text: str) -> None:
    """Keep the template in the run's folder: neither an edited file nor a newer Tunesmith changes the run.

    Bytes, so that no line ending is changed on any system.
    """
    write_atomic(run.path / FILE, text.encode("utf-8"))


def kept_text(run: RunFolder | None) -> str | None:
    """The template that the run's folder keeps; None before its first start, and for runs of older versions."""
    place = run.path / FILE if run is not None else None
    return place.read_bytes().decode("utf-8") if place is not None and place.is_file() else None


def pin_template(run: RunFolder, config: TrainRun, progress: Progress) -> TrainRun:
    """Settle the template of a run that begins, and keep its text; a chosen name is written into the run's config.

    Raises RenderError.
    """
    if (run.path / FILE).is_file():
        return config
    from tunesmith.models.vocabulary import tokenizer_with_tokens

    model = config.model
    local = localize(model.ref, progress)
    found = settle(tokenizer_with_tokens(local.folder, model)[0], model.template)
    keep_text(run, found.text)
    if found.name != model.template:
        if found.reason:
            progress.say(found.reason)
        config = config.model_copy(update={"model": model.model_copy(update={"template": found.name})})
        save(config, run.config_path)
    return config


def template_of(tokenizer: Any, model: ModelConfig, kept: str | None = None) -> Settled:
    """The template of a config as it is rendered and saved: with its variables. ``kept``: the text a run began with."""
    found = settle(tokenizer, model.template, kept)
    return Settled(baked(found.text, model.template_args), found.name, found.reason)


def listing() -> list[NamedTemplate]:
    """The named templates."""
    from tunesmith.render.named import all_named

    return list(all_named().values())


def text_of(name: str) -> str:
    """The text of one. Raises RenderError."""
    return read_template(name)
