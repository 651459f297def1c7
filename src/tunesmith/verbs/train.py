"""``tunesmith train``: one YAML -> a run folder with a trained adapter."""

from __future__ import annotations

import contextlib
import datetime
import os
import random
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tunesmith.config.errors import UserError
from tunesmith.config.load import dump, save
from tunesmith.config.plugins import load as load_plugin
from tunesmith.config.progress import SILENT, Progress
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs.console import Logged
from tunesmith.verbs.read_data import check_data
from tunesmith.verbs.rows import encode, pin_rows
from tunesmith.verbs.run_config import TrainRun, config_of_run

STAGES, METHODS = "tunesmith.stages", "tunesmith.models.methods"


def create(config: TrainRun, progress: Progress = SILENT) -> RunFolder:
    """A new run folder for ``config``. Its date and paths are pinned, so that it resumes from anywhere and any day.

    Raises UserError for what ``check_parts`` finds.
    """
    from tunesmith.data.sources import pinned as pinned_set
    from tunesmith.hub.reference import parse
    from tunesmith.render.template import read_template
    from tunesmith.verbs.templates import absolute_choice, keep_text

    check_parts(config, progress)
    config = config.model_copy(update={"model": absolute_choice(config.model)})
    data = config.data
    pinned: dict[str, Any] = {"date": data.date or datetime.date.today().isoformat()}
    for key in ("train", "eval"):
        pinned[key] = tuple(pinned_set(choice, data.registry) for choice in getattr(data, key))
    if data.registry is not None:
        pinned["registry"] = _absolute(data.registry)
    config = config.model_copy(update={"data": data.model_copy(update=pinned)})
    reference = parse(config.model.ref)
    if reference.kind == "path":
        config = config.model_copy(update={"model": config.model.model_copy(update={"ref": str(reference.path)})})
    short = config.model.ref.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    run = RunFolder.create(dump(config), config.output.name or f"{config.stage.kind}-{short}")
    if config.model.template is not None:
        keep_text(run, read_template(config.model.template))
    return run


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def check_parts(config: TrainRun, progress: Progress = SILENT) -> None:
    """Everything about a config that can be said without downloading or opening a model: its data is fetched and read.

    Raises UserError.
    """
    from tunesmith.hub.reference import parse
    from tunesmith.hub.resolve import resolve_model
    from tunesmith.render.template import read_template

    if config.model.template is not None:
        read_template(config.model.template)
    reference = parse(config.model.ref)
    if reference.kind not in ("hf", "ms", "hub", "demo"):
        resolve_model(reference)
    check_data(config, load_plugin(STAGES, config.stage.kind).EXAMPLES, progress)


def execute(run: RunFolder, progress: Progress) -> RunFolder:
    """Train the run from where it stands: from the start, or from its newest checkpoint.

    Raises UserError with the run's status set to ``failed``; an unexpected error leaves its traceback in the run's log.
    """
    with run.claimed("preparing"):
        return _execute(run, progress)


def _execute(run: RunFolder, progress: Progress) -> RunFolder:
    in_log = os.environ.get("TUNESMITH_PLAIN") and not sys.stderr.isatty() and _stderr_is(run.log_path)
    progress = progress if in_log else Logged(progress, run.log_path)
    try:
        outcome = _train(run, config_of_run(run), progress)
    except UserError as error:
        _end(run, f"error: {error}", state="failed", error=str(error))
        raise
    except KeyboardInterrupt:
        _end(run, "stopped by Ctrl-C", state="stopped")
        raise
    except BaseException as error:
        _end(run, traceback.format_exc(), state="failed", error=f"{type(error).__name__}: {error}")
        raise
    run.update_status(state="finished" if outcome.finished else "stopped", what="", result=outcome.position.last)
    return run


def _train(run: RunFolder, config: TrainRun, progress: Progress) -> Any:
    import torch

    from tunesmith.export.companions import save_tokenizer
    from tunesmith.models.devices import best_device, set_threads
    from tunesmith.models.open import open_model
    from tunesmith.models.precision import resolve_precision
    from tunesmith.render.stop import end_of_turn_token
    from tunesmith.runs.plot import plot_loss
    from tunesmith.train.loop import Setup, train
    from tunesmith.train.masters import Masters
    from tunesmith.verbs.targets import open_renderer
    from tunesmith.verbs.templates import pin_template

    set_threads()
    device = best_device()
    precision, why = resolve_precision(config.precision, device)
    if precision != config.precision:  # pinned, so that a resumed run computes in the same numbers
        config = config.model_copy(update={"precision": precision})
        save(config, run.config_path)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    progress.say(f"device {device.type}, {precision}{f' ({why})' if why else ''}, {torch.get_num_threads()} threads")
    config = pin_template(run, config, progress)
    local, renderer = open_renderer(config.model, config.data, progress, run=run)
    if end_of_turn_token(renderer) is None:
        progress.say(
            "warning: the chat template puts no special token after an answer; the model may not learn to stop"
        )
    plugin = load_plugin(STAGES, config.stage.kind)
    stage = plugin.build(config.stage, renderer)
    rows = encode(config, stage, plugin.EXAMPLES, renderer, progress)
    pin_rows(run, rows)
    progress.start(f"opening {config.model.ref}")
    random.seed(config.train.seed)
    torch.manual_seed(config.train.seed)
    model = open_model(
        local.folder, dtype=dtype, device=device, attention="varlen" if config.train.packing else "sdpa",
        trust_remote_code=config.model.trust_remote_code,
    )  # fmt: skip
    method = load_plugin(METHODS, config.method.kind)
    model = method.apply(model, config.method, base_name=local.name)
    masters = Masters(model, dtype)
    learned = sum(p.numel() for p in masters.parameters())
    whole = sum(p.numel() for p in model.parameters())
    progress.finish(f"{learned / 1e6:.2f} of {whole / 1e6:.1f} million weights are learned ({config.method.kind})")
    micro_tokens = config.train.micro_tokens or max(
        config.data.max_length if device.type == "cuda" else 0, _default_micro(device)
    )
    _checkpointing(model, config, micro_tokens, device, progress)
    resume = None
    if run.checkpoint_steps():
        folder = run.checkpoint()
        resume = (folder, method.load_state(folder, model))
        progress.say(f"resuming from {folder.name}")

    def save_model(folder: Path, state: Any) -> None:
        method.save(model, folder, state)
        save_tokenizer(local.folder, folder, renderer.chat_template)

    setup = Setup(
        model=model, stage=stage, train=rows.train, eval=rows.eval, config=config.train, run=run, masters=masters,
        micro_tokens=micro_tokens, save_model=save_model,
    )  # fmt: skip
    outcome = train(setup, resume=resume, progress=progress)
    plot_loss(run)
    return outcome


def _default_micro(device: Any) -> int:
    return 512 if device.type == "cpu" else 8192


def _checkpointing(model: Any, config: TrainRun, micro_tokens: int, device: Any, progress: Progress) -> None:
    """Turn gradient checkpointing on when asked, or when the activations would not fit."""
    from tunesmith.models.devices import memory

    wanted = config.train.gradient_checkpointing
    if wanted == "auto":
        text = model.config.get_text_config()
        # About 34 bytes per token, layer and unit of width for a bf16 layer (Korthikanti et al., 2022, arXiv:2205.05198, eq. 1
        # without dropout and attention scores), plus the logits in fp32 with their gradient.
        width = 2 if config.precision == "fp32" else 1
        needed = micro_tokens * (text.num_hidden_layers * text.hidden_size * 34 * width + text.vocab_size * 12)
        wanted = needed > 0.8 * memory(device).free
    if wanted:
        turn_on_checkpointing(model)
        progress.say("gradient checkpointing is on: activations are computed twice to save memory")


def turn_on_checkpointing(model: Any) -> None:
    """Recompute every layer's activations in the backward pass (Chen et al., 2016, arXiv:1604.06174)."""
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _stderr_is(path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(sys.stderr.fileno()), path.stat())
    except (OSError, ValueError):
        return False


def _end(run: RunFolder, note: str, **changes: Any) -> None:
    """Say in status and log how the run ended; on a full disk the error itself matters more than these."""
    for write in (lambda: run.update_status(what="", **changes), lambda: _note(run, note)):
        with contextlib.suppress(OSError):
            write()


def _note(run: RunFolder, text: str) -> None:
    with run.log_path.open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%H:%M:%S')}  {text.rstrip()}\n")
