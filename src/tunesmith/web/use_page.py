"""`/run/{id}/use`: export, deploy or compare what a run learned. Forms are drawn from the commands' schemas, work outlives the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from nicegui import run, ui

from tunesmith.config.errors import UserError
from tunesmith.runs import work
from tunesmith.runs.folder import RunFolder
from tunesmith.web import commands, form_values, run_files
from tunesmith.web.files_view import draw_files
from tunesmith.web.form_model import Field, read_form
from tunesmith.web.form_view import FormView
from tunesmith.web.language import Texts
from tunesmith.web.shell import button, copy, frame, tag
from tunesmith.web.use_command import arguments, shown
from tunesmith.web.work_view import WorkView

COMMANDS = {"export": ("run:{id}",), "deploy": ("run:{id}",), "compare": ("run:{id}@base", "run:{id}")}
"""What can be done, and the models each command is given."""


def register(command: Sequence[str]) -> None:
    """Lay the page at ``/run/{id}/use``; ``?do=deploy`` chooses the command."""
    sources = {name: commands.SchemaSource(command, name) for name in COMMANDS}

    @ui.page("/run/{id}/use")
    async def use_page(id: str) -> None:
        folder = await run.io_bound(run_files.known_run, id)
        asked = ui.context.client.request.query_params.get("do", "export")
        chosen = asked if asked in COMMANDS else "export"
        if folder is None:
            ui.context.client.status_code = 404
            with frame("run.missing_title") as t:
                with ui.element("section").classes("empty"):
                    tag("h1", t("run.missing_title"))
                    tag("p", t("run.missing_body", id=id[:80]))
                    tag("a", t("run.back"), "cta", href="/")
            return
        with frame(title=folder.id) as t:
            tag("a", "← " + folder.id, "back", href=f"/run/{quote(folder.id)}")
            tag("h1", t("use.title"))
            tag("p", t("use.lead"), "quiet lead")
            with ui.element("nav").classes("tabs"):
                for name in COMMANDS:
                    link = tag("a", t(f"use.{name}"), "tab", href=f"/run/{quote(folder.id)}/use?do={name}")
                    if name == chosen:
                        link.props["aria-current"] = "page"
            body = ui.element("div").classes("new-body use-body")
            with body, ui.element("div").classes("loading").props("role=status"):
                ui.spinner(size="sm")
                tag("span", t("form.loading"))
        await ui.context.client.connected()
        if not ui.context.client.is_deleted:
            await _Use(body, folder, chosen, sources[chosen], t).load()


class _Use:
    def __init__(self, body: Any, folder: RunFolder, chosen: str, source: commands.SchemaSource, t: Texts) -> None:
        self.body, self.folder, self.chosen, self.source, self.t = body, folder, chosen, source, t
        self.fields: tuple[Field, ...] = ()
        self.files: tuple[run_files.Artifact, ...] | None = None

    async def load(self) -> None:
        """Ask for the command's settings and draw."""
        try:
            self.fields = read_form(await self.source.get())
        except UserError as error:
            self.body.clear()
            with self.body, ui.element("section").classes("banner banner-failed").props("role=alert"):
                tag("strong", self.t("form.no_schema"))
                tag("pre", error.message, "said")
            return
        if ui.context.client.is_deleted:
            return
        self.draw()
        await self.refresh()
        ui.timer(1.0, self.refresh)

    def draw(self) -> None:
        t = self.t
        self.body.clear()
        with self.body:
            with ui.element("div").classes("new-columns"):
                with ui.element("div").classes("new-form"):
                    self.form = FormView(self.fields, {}, t, self.show_command)
                    with ui.element("div").classes("card form-card"):
                        self.form.draw_basic()
                    self.form.draw_advanced()
                with ui.element("aside").classes("new-side"):
                    with ui.element("section").classes("card start-card"):
                        with ui.element("div").classes("start-row"):
                            self.button = button(
                                t(f"use.{self.chosen}"), self.start, icon="play_arrow", style="main", css="start"
                            )
                        self.error = ui.element("div").classes("start-error").props("role=alert")
                    with ui.element("section").classes("card"):
                        with ui.element("div").classes("card-head"):
                            tag("h2", t("use.command"))
                            button(
                                t("action.copy"),
                                lambda: copy(shown(self.words()), t),
                                icon="content_copy",
                                style="quiet",
                            )
                        self.preview = tag("pre", css="log yaml", tabindex="0")
            with ui.element("section").classes("card"):
                tag("h2", t("use.done"))
                self.works = WorkView(t, self.refresh)
            with ui.element("section").classes("card"):
                tag("h2", t("run.artifacts"))
                self.shelf = ui.element("div").classes("files")
        self.show_command()

    def words(self) -> list[str]:
        """The command's arguments as the form stands."""
        models = [model.format(id=self.folder.id) for model in COMMANDS[self.chosen]]
        return arguments(self.chosen, models, self.fields, self.form.reading.config)

    def show_command(self) -> None:
        self.preview.set_text(shown(self.words()))

    async def refresh(self) -> None:
        """The works and files as they are now."""
        if not self.folder.config_path.is_file():
            ui.navigate.to("/")
            return
        works, files = await run.io_bound(lambda: (work.listed(self.folder), tuple(run_files.artifacts(self.folder))))
        if self.body.is_deleted:
            return
        self.works.show(works)
        self.button.set_enabled(not any(one.state == "running" for one in works))
        if files != self.files:
            self.files = files
            self.shelf.clear()
            with self.shelf:
                draw_files(self.folder.id, files, self.t)

    async def start(self) -> None:
        """Start the command once, or show the whole message."""
        self.error.clear()
        self.form.name([])
        if self.form.show_all_problems():
            self._say(self.t("form.mend"), "")
            return
        self.button.set_enabled(False)
        try:
            await run.io_bound(work.start, self.folder, self.words())
        except (UserError, OSError) as error:
            self._say(getattr(error, "message", str(error)), getattr(error, "hint", None) or "")
        await self.refresh()

    def _say(self, message: str, hint: str) -> None:
        with self.error:
            tag("pre", message, "said")
            if hint:
                tag("p", hint, "hint")
        self.form.name(form_values.named_fields(self.fields, self.form.state, f"{message}\n{hint}"))
