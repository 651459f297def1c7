"""`/data`: is this data worth training on? Asks ``tunesmith data check`` and ``tunesmith data show``, and draws their answers."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Sequence

from nicegui import ui

from tunesmith.config.errors import UserError
from tunesmith.web import data_request, data_rows, figures
from tunesmith.web.data_fields import DataFields
from tunesmith.web.data_report import Report, read_report
from tunesmith.web.data_request import Request
from tunesmith.web.job import Cancelled, Job
from tunesmith.web.language import Texts
from tunesmith.web.report_view import ReportView
from tunesmith.web.rows_view import COUNT, RowsView
from tunesmith.web.shell import button, copy, frame, tag


def register(command: Sequence[str]) -> None:
    """Lay the page at ``/data``. ``?data=SET&data=SET&model=M&length=N&setting=KEY=VALUE`` fills in the fields; nothing is read
    before a button is pressed, since any site may link here."""

    @ui.page("/data")
    def data_page() -> None:
        client = ui.context.client
        request = data_request.of_query(client.request.query_params.multi_items())
        with frame("sets.title", here="nav.data") as t:
            page = _DataPage(request, command, t)
        client.on_delete(page.cancel)  # nobody is left to see the answer


class _DataPage:
    def __init__(self, request: Request, command: Sequence[str], t: Texts) -> None:
        self.command, self.t = command, t
        self.job: Job | None = None
        self.asked: Request | None = None  # what the trouble and the results on the page belong to
        tag("h1", t("sets.title"))
        tag("p", t("sets.lead"), "quiet")
        with ui.element("section").classes("card data-form"):
            self.fields = DataFields(request, t, self._changed, self.check)
            with ui.element("div").classes("actions"):
                self.check_button = button(t("sets.check"), self.check, icon="fact_check", style="main")
                self.show_button = button(t("sets.show"), self.show_first, icon="visibility")
                ui.element("div").classes("grow")
                self.train_link = tag("a", t("sets.train"), "small-link")
        self.busy = ui.element("div").classes("slot busy-slot").props("role=status")
        self.trouble = ui.element("div").classes("slot").props("role=alert")
        self.old = ui.element("div").classes("slot").props("role=status")
        self.rows = ui.element("div").classes("slot")
        self.report = ui.element("div").classes("slot report")
        self._changed()

    def _changed(self) -> None:
        """The link to training holds what is filled in; a mended field is no longer marked; results of something else are."""
        request, problems = self.fields.read()
        self._mark_old(bool(problems) or request != self.asked)
        self.train_link.props["href"] = f"/new?{request.query()}"
        self.train_link.set_visibility(bool(request.sets) and not problems)
        self.train_link.update()
        self.fields.mark_mended(problems)

    def _mark_old(self, old: bool) -> None:
        """Results that do not belong to what is filled in stay to be read, marked; an old failure goes."""
        self.old.clear()
        if old:
            self.trouble.clear()
        results = [slot for slot in (self.rows, self.report) if list(slot)]
        for slot in (self.rows, self.report):
            slot.classes(add="old" if old and slot in results else "", remove="" if old and slot in results else "old")
        if old and results and self.asked is not None:
            with self.old, ui.element("section").classes("banner banner-old"):
                tag("strong", self.t("sets.old"))
                tag("code", data_request.written(self.asked.check()), "command")

    def _begin(self, request: Request, *, afresh: bool = False) -> None:
        """From here on the page is about ``request``; results of another are taken away (``afresh``: all)."""
        if afresh or request != self.asked:
            self.report.clear()
            self.rows.clear()
        self.asked = request
        self._changed()

    def _accepted(self) -> Request | None:
        """What is filled in, or None after saying what is wrong with it."""
        request, problems = self.fields.read()
        self.fields.mark(problems)
        if problems:
            self.trouble.clear()
            return None
        address = json.dumps(f"/data?{request.query()}")  # a reload finds the same fields
        ui.run_javascript(f"history.replaceState(null, '', {address})")
        return request

    # -- asking ----------------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """Ask for a report and draw it."""
        if self.job is not None or (request := self._accepted()) is None:
            return
        self._begin(request, afresh=True)

        async def ask(job: Job, said: Callable[[str], None]) -> None:
            report = await job.run(
                read_report, answers=(0, 2), said=said
            )  # 2 with an answer: errors were found in the data
            if not self.report.is_deleted:
                self._draw(report, request)

        await self._work(request.check(), "sets.error_check", ask)

    async def show_first(self) -> None:
        """Show the first rows of the first set."""
        if self.job is None and (request := self._accepted()) is not None:
            await self._show(request, request.sets[0], 1)

    async def _show(self, request: Request, name: str, first: int) -> None:
        if self.job is not None:
            return
        self._begin(request)

        async def ask(job: Job, said: Callable[[str], None]) -> None:
            answer = await job.run(data_rows.read_rows, said=said)
            if self.rows.is_deleted:
                return
            self.rows.clear()
            with self.rows:
                RowsView(answer, name, first, self.t, lambda n, row: self._show(request, n, row))

        await self._work(request.show(name, first, COUNT), "sets.error_show", ask)

    async def _work(
        self, arguments: list[str], failed: str, ask: Callable[[Job, Callable[[str], None]], Awaitable[None]]
    ) -> None:
        """Run one command with the page marked as busy; trouble is shown whole."""
        self.trouble.clear()
        job = self.job = Job(self.command, arguments)
        said = self._show_busy(job)
        try:
            await ask(job, said)
        except Cancelled:
            self._show_trouble("sets.cancelled", "", "", calm=True)
        except (UserError, OSError) as error:
            hint = error.hint if isinstance(error, UserError) else ""
            message = error.message if isinstance(error, UserError) else str(error)
            self._show_trouble(failed, message, hint or "")
        finally:
            self.job = None
            self._idle()
            if not self.old.is_deleted:
                self._changed()  # the fields may have been changed while it ran

    def cancel(self) -> None:
        """End the command that runs, if one does."""
        if self.job is not None:
            self.job.cancel()

    # -- drawing ---------------------------------------------------------------------------------------------------

    def _show_busy(self, job: Job) -> Callable[[str], None]:
        t = self.t
        self._dim(True)
        with self.busy, ui.element("section").classes("card busy"):
            ui.spinner(size="sm")
            with ui.element("div").classes("grow"):
                tag("strong", t("sets.busy"))
                line = tag("p", "", "quiet busy-line")
            clock = tag("span", "", "figure quiet", aria_hidden="true")
            stop = button(t("action.cancel"), icon="close", style="plain")

            def end() -> None:
                stop.set_enabled(False)
                line.set_text(t("sets.cancelling"))
                job.cancel()

            stop.on_click(end)
            ui.timer(1.0, lambda: clock.set_text(figures.duration(time.monotonic() - job.began)))

        def said(text: str) -> None:
            if not line.is_deleted and not job.cancelled:
                line.set_text(text)

        return said

    def _idle(self) -> None:
        if self.busy.is_deleted:
            return
        self.busy.clear()
        self._dim(False)

    def _dim(self, busy: bool) -> None:
        """Not disabled, which would take the focus away; a press while something runs does nothing."""
        for one in (self.check_button, self.show_button):
            one.props["aria-disabled"] = "true" if busy else "false"
            one.update()

    def _show_trouble(self, title: str, message: str, hint: str, *, calm: bool = False) -> None:
        if self.trouble.is_deleted:
            return
        with self.trouble, ui.element("section").classes(f"banner {'' if calm else 'banner-failed'}"):
            tag("strong", self.t(title))
            if message:
                tag("pre", message, "said")
            if hint:
                with ui.element("p"):
                    tag("b", self.t("run.what_to_do") + ": ")
                    tag("span", hint, "hint-lines")
            if message and self.t.language != "en":
                tag("p", self.t("sets.as_said"), "quiet as-said")

    def _draw(self, report: Report, request: Request) -> None:
        t = self.t
        with self.report:
            errors, warnings = report.count("error"), report.count("warning")
            outcome = "bad" if errors else "look" if warnings else "good"
            with ui.element("section").classes(f"banner verdict verdict-{outcome}").props("role=status"):
                tag("strong", t(f"verdict.{outcome}", errors=f"{errors:,}", warnings=f"{warnings:,}"))
            ReportView(report, t, lambda at, row: self._show(request, request.sets[at], row))
            line = data_request.written(request.check())
            with ui.element("div").classes("same"):
                tag("span", t("sets.same"), "quiet")
                tag("code", line, "command")
                button(t("action.copy"), lambda: copy(line, t), icon="content_copy", style="quiet")
