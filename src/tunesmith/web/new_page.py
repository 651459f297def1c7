"""`/new`: the form drawn from the schema, the YAML it makes, and Start."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from nicegui import run, ui

from tunesmith.config.errors import UserError
from tunesmith.web import commands, data_request, form_values, run_files
from tunesmith.web.form_model import Field, read_form
from tunesmith.web.form_view import FormView
from tunesmith.web.language import Texts
from tunesmith.web.shell import button, copy, frame, say, tag

DRAFT = "tunesmith.draft"


def register(command: Sequence[str]) -> None:
    """Lay the page at ``/new``. ``?from=ID`` begins with the config of a run, ``?data=SET&model=M`` with these over the draft."""
    source = commands.SchemaSource(command)

    @ui.page("/new")
    async def new_page() -> None:
        query = ui.context.client.request.query_params
        from_id, given = query.get("from", ""), data_request.of_query(query.multi_items())
        with frame("form.title", here="nav.new") as t:
            body = ui.element("div").classes("new-body")
            with body:
                with ui.element("div").classes("loading").props("role=status"):
                    ui.spinner(size="sm")
                    tag("span", t("form.loading"))
        await ui.context.client.connected()
        if ui.context.client.is_deleted:  # nobody stayed to see it
            return
        await _NewRun(body, source, command, t, from_id, given).load()


class _NewRun:
    def __init__(
        self,
        body: Any,
        source: commands.SchemaSource,
        command: Sequence[str],
        t: Texts,
        from_id: str,
        given: data_request.Request,
    ) -> None:
        self.body, self.source, self.command, self.t, self.from_id = body, source, command, t, from_id
        self.given = given
        self.fields: tuple[Field, ...] = ()
        self.starting = False

    async def load(self) -> None:
        """Ask for the settings and what was filled in before, and draw."""
        try:
            self.fields = read_form(await self.source.get())
        except UserError as error:
            self._no_schema(error)
            return
        state, failure = await self._first_state()
        if ui.context.client.is_deleted:
            return
        self.draw(state)
        if self.from_id or self.given.query():  # from here on the draft is what counts, also after a reload
            ui.run_javascript("history.replaceState(null, '', '/new')")
            self.keep()
        if failure:
            message, hint = commands.split_message(failure)
            self._show_error("form.error_from", message, hint)

    async def _first_state(self) -> tuple[dict[str, Any], str]:
        """What the form begins with, and the error of the failed run it was taken from."""
        folder = await run.io_bound(run_files.known_run, self.from_id) if self.from_id else None
        if folder is not None:
            state = form_values.from_config(self.fields, await run.io_bound(folder.config_values) or {})
            status = folder.status()
            return state, status.error if status.state == "failed" else ""
        try:
            kept = await ui.run_javascript(f"return localStorage.getItem({json.dumps(DRAFT)})", timeout=5.0)
            draft = form_values.tidy(self.fields, json.loads(kept or "{}"))
        except (TimeoutError, ValueError, TypeError):
            draft = {}
        return draft | form_values.from_config(self.fields, self.given.config()), ""

    def _no_schema(self, error: UserError) -> None:
        self.body.clear()
        with self.body, ui.element("section").classes("banner banner-failed").props("role=alert"):
            tag("strong", self.t("form.no_schema"))
            tag("pre", error.message, "said")
            if error.hint:
                tag("p", error.hint)
            button(self.t("action.again"), lambda: ui.navigate.reload(), icon="refresh")

    def draw(self, state: dict[str, Any]) -> None:
        """The whole page for a state."""
        t = self.t
        self.body.clear()
        with self.body:
            tag("h1", t("form.title"))
            tag("p", t("form.lead"), "quiet lead")
            with ui.element("div").classes("new-columns"):
                with ui.element("div").classes("new-form"):
                    self.form = FormView(self.fields, state, t, self.changed)
                    with ui.element("div").classes("card form-card"):
                        self.form.draw_basic()
                    self.form.draw_advanced()
                with ui.element("aside").classes("new-side"):
                    self._side()
        self.show_yaml()

    def _side(self) -> None:
        t = self.t
        with ui.element("section").classes("card start-card"):
            with ui.element("div").classes("start-row"):
                self.start_button = button(t("form.start"), self.start, icon="play_arrow", style="main", css="start")
                button(t("form.reset"), self.ask_reset, style="quiet")
            self.data_link = tag("a", t("form.check_data"), "small-link")
            self.error = ui.element("div").classes("start-error").props("role=alert")
        with ui.element("section").classes("card"):
            with ui.element("div").classes("card-head"):
                tag("h2", t("form.yaml"))
                button(t("action.copy"), lambda: copy(self.yaml, t), icon="content_copy", style="quiet")
            tag("p", t("form.yaml_lead"), "quiet")
            self.preview = tag("pre", css="log yaml", tabindex="0")

    @property
    def yaml(self) -> str:
        return form_values.to_yaml(self.form.reading.config)

    def show_yaml(self) -> None:
        self.preview.set_text(self.yaml or self.t("form.yaml_empty"))
        self.data_link.props["href"] = f"/data?{data_request.of_config(self.form.reading.config).query()}"
        self.data_link.update()

    def changed(self) -> None:
        """After every change: the YAML, and the draft in this browser."""
        self.show_yaml()
        self.keep()

    def keep(self) -> None:
        draft = json.dumps(json.dumps(self.form.state))
        ui.run_javascript(f"try {{ localStorage.setItem({json.dumps(DRAFT)}, {draft}) }} catch {{}}")

    def ask_reset(self) -> None:
        with ui.dialog() as dialog, ui.card().classes("dialog"):
            tag("h2", self.t("form.reset_title"))

            def yes() -> None:
                dialog.close()
                self.draw({})
                self.keep()

            with ui.element("div").classes("dialog-actions"):
                button(self.t("action.cancel"), dialog.close, style="quiet")
                button(self.t("form.reset"), yes, style="danger")
        dialog.open()

    # -- starting --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the run once, however often the button is pressed, and go to it; or show the whole message."""
        if self.starting:
            return
        self.error.clear()
        self.form.name([])
        if self.form.show_all_problems():
            say(self.t("form.mend"), bad=True, close=self.t("action.close"))
            self._scroll_to(".field.bad")
            return
        self._busy(True)
        try:
            id, outcome = await commands.start_run(self.command, self.yaml)
        except OSError as error:
            id, outcome = "", commands.Outcome(1, "", str(error), "")
        if id:
            say(self.t("form.started", id=id))
            ui.navigate.to(f"/run/{quote(id)}")
            return
        self._busy(False)
        self._show_error("form.error_title", outcome.message, outcome.hint)

    def _busy(self, busy: bool) -> None:
        self.starting = busy
        self.start_button.set_text(self.t("form.starting" if busy else "form.start"))
        self.start_button.props["loading"] = busy
        self.start_button.set_enabled(not busy)

    def _show_error(self, title: str, message: str, hint: str) -> None:
        t = self.t
        with self.error:
            tag("strong", t(title))
            tag("pre", message, "said")
            if hint:
                with ui.element("p").classes("hint"):
                    tag("b", t("run.what_to_do") + ": ")
                    tag("span", hint)
        self.form.name(form_values.named_fields(self.fields, self.form.state, f"{message}\n{hint}"))
        self._scroll_to(".start-error")

    @staticmethod
    def _scroll_to(selector: str) -> None:
        ui.run_javascript(
            f"setTimeout(() => document.querySelector({json.dumps(selector)})"
            "?.scrollIntoView({block: 'center', behavior: 'smooth'}), 150)"
        )
