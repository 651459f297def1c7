"""``tunesmith train``: one YAML -> a run folder with a trained adapter."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tunesmith.config.errors import UserError
from tunesmith.config.load import dump
from tunesmith.config.plugins import load as load_plugin
from tunesmith.config.progress import SILENT, Progress
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs.adapters import pin_adapters
from tunesmith.verbs.combinations import check_combinations
from tunesmith.verbs.console import Logged
from tunesmith.verbs.read_data import check_data
from tunesmith.verbs.run_config import OPTIMIZERS, STAGES, TrainRun, config_of_run


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
    config = config.model_copy(update={"method": pin_adapters(config.method, progress)})
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
    from tunesmith.runs import tracking
    from tunesmith.train.optimizers.base import check_installed

    if config.model.template is not None:
        read_template(config.model.template)
    check_installed(load_plugin(OPTIMIZERS, config.train.optimizer.kind))
    reference = parse(config.model.ref)
    if reference.kind not in ("hf", "ms", "hub", "demo"):
        resolve_model(reference)
    check_combinations(config)
    tracking.check(config.tracking)
    check_data(config, load_plugin(STAGES, config.stage.kind).EXAMPLES, progress)


def execute(run: RunFolder, progress: Progress) -> RunFolder:
    """Train the run from where it stands: from the start, or from its newest checkpoint.

    Raises UserError with the run's status set to ``failed``; an unexpected error leaves its traceback in the run's log.
    """
    from tunesmith.runs import tracking
    from tunesmith.train.signals import interrupted_by_sigterm

    with run.claimed("preparing"), interrupted_by_sigterm():
        follower = None
        try:
            follower = tracking.start(run, config_of_run(run).tracking)
        except OSError as error:
            progress.say(
                f"warning: the trackers could not be started: {error}; tunesmith runs track {run.id} sends the figures"
            )
        try:
            return _execute(run, progress)
        finally:
            trouble = tracking.wait(follower, run)
            if trouble:
                progress.say(trouble)


def _execute(run: RunFolder, progress: Progress) -> RunFolder:
    in_log = os.environ.get("TUNESMITH_PLAIN") and not sys.stderr.isatty() and _stderr_is(run.log_path)
    progress = progress if in_log else Logged(progress, run.log_path)
    try:
        outcome = _train(run, config_of_run(run), progress)
    except UserError as error:
        _end(run, f"error: {error}", state="failed", error=str(error))
        raise
    except KeyboardInterrupt as stop:
        _end(run, "stopped before the end of a step; resuming goes on from the last checkpoint", state="stopped")
        stop.args = stop.args or (f"the run and its checkpoints are kept; go on with: tunesmith runs resume {run.id}",)
        raise
    except BaseException as error:
        _end(run, traceback.format_exc(), state="failed", error=f"{type(error).__name__}: {error}")
        raise
    from tunesmith.train.recording import record_status

    state = "finished" if outcome.finished else "stopped"
    record_status(run, state=state, what="", result=outcome.position.result(), note=outcome.note)
    return run


def _train(run: RunFolder, config: TrainRun, progress: Progress) -> Any:
    from tunesmith.runs.plot import plot_loss
    from tunesmith.train.loop import train
    from tunesmith.train.out_of_memory import in_words
    from tunesmith.verbs.assemble import assemble

    setup, resume = assemble(run, config, progress)
    assert setup.memory is not None
    with in_words(setup.memory):
        outcome = train(setup, resume=resume, progress=progress)
    progress.say(setup.memory.peak_line())
    try:
        plot_loss(run)
    except OSError as error:
        progress.say(f"warning: the picture of the losses could not be written: {error}")
    return outcome


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
