"""What can be done to a run: stop, resume, delete. Slow parts run off the event loop; doing a thing twice does it once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nicegui import background_tasks, run, ui

from tunesmith.config.errors import UserError
from tunesmith.runs import process
from tunesmith.runs.folder import RunFolder
from tunesmith.web import commands
from tunesmith.web.language import Texts
from tunesmith.web.shell import button, say, tag

RESUMABLE = {"stopped", "interrupted", "failed"}
_busy: dict[str, str] = {}


def _once(kind: str, folder: RunFolder, work: Callable[[], Any]) -> None:
    """Run ``work`` in the background of the page, unless something is being done to the run already."""
    if folder.id in _busy:
        return
    _busy[folder.id] = kind

    async def guarded() -> None:
        try:
            await work()
        finally:
            _busy.pop(folder.id, None)

    background_tasks.create(guarded(), context=ui.context.client.content)


def doing(id: str) -> str:
    """What is being done to the run just now: ``stop``, ``resume``, ``delete``; '' when nothing is."""
    return _busy.get(id, "")


def stop(folder: RunFolder, t: Texts) -> None:
    """Ask the run to stop; it saves first."""

    async def work() -> None:
        say(t("stop.asked", id=folder.id))
        try:
            await run.io_bound(process.stop, folder)
            say(t("stop.done", id=folder.id))
        except (UserError, OSError) as error:
            say(str(error), bad=True, close=t("action.close"))

    _once("stop", folder, work)


def resume(folder: RunFolder, command: Sequence[str], t: Texts) -> None:
    """Let the run go on from its newest checkpoint, as a process of its own."""

    async def work() -> None:
        say(t("resume.asked", id=folder.id))
        outcome = await commands.run(command, "runs", "resume", folder.id, "--detach")
        if outcome.well:
            say(t("resume.done", id=folder.id))
        else:
            say("\n".join(filter(None, (outcome.message, outcome.hint))), bad=True, close=t("action.close"))

    _once("resume", folder, work)


def ask_delete(folder: RunFolder, t: Texts, then: Callable[[], None]) -> None:
    """A dialog that names the run; ``then`` is called when it is gone."""
    with ui.dialog() as dialog, ui.card().classes("dialog"):
        tag("h2", t("delete.title"))
        tag("p", t("delete.body", id=folder.id))

        async def work() -> None:
            try:
                await run.io_bound(folder.delete)
            except (UserError, OSError) as error:
                say(str(error), bad=True, close=t("action.close"))
                return
            say(t("delete.done", id=folder.id))
            then()

        def yes() -> None:
            dialog.close()
            _once("delete", folder, work)

        with ui.element("div").classes("dialog-actions"):
            button(t("action.cancel"), dialog.close, style="quiet").props("autofocus")
            button(t("action.delete"), yes, style="danger", icon="delete")
    dialog.open()
