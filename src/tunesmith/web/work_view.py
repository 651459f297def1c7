"""The work done with a run, on the page: what runs now, what it says, how it ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui import background_tasks, run, ui

from tunesmith.config.errors import UserError
from tunesmith.runs import work
from tunesmith.runs.work import Work
from tunesmith.web import figures
from tunesmith.web.commands import split_message
from tunesmith.web.language import Texts
from tunesmith.web.list_page import state_chip
from tunesmith.web.shell import button, copy, say, tag
from tunesmith.web.use_command import shown

MOST = 20
LOG_CHARACTERS = 20_000


class WorkView:
    """A list of works, newest first; the newest one is unfolded. ``again`` is called after one was stopped or removed."""

    def __init__(self, t: Texts, again: Callable[[], Any]) -> None:
        self.t, self.again = t, again
        self.box = ui.element("div").classes("works")
        self.before: tuple[Any, ...] = ()
        self.logs: dict[str, Any] = {}
        self.open: set[str] = set()

    def show(self, works: list[Work]) -> None:
        """Draw what changed."""
        works = works[:MOST]
        now = tuple((one.id, one.state) for one in works)
        if now != self.before:
            for id in (works[0].id,) if works and works[0].id not in {id for id, _ in self.before} else ():
                self.open = {id}
            self.before = now
            self._draw(works)
        for one in works:
            if one.id in self.logs and one.state == "running":
                self.logs[one.id].set_text(self._log(one))

    def _draw(self, works: list[Work]) -> None:
        t = self.t
        self.box.clear()
        self.logs = {}
        with self.box:
            if not works:
                tag("p", t("use.none"), "quiet")
            for one in works:
                self._draw_one(one)

    def _draw_one(self, one: Work) -> None:
        t = self.t
        fold = ui.expansion(value=one.id in self.open, on_value_change=lambda e: self._fold(one.id, bool(e.value)))
        fold.classes("fold work").props("dense-toggle")
        with fold.add_slot("header"):
            with ui.element("div").classes("work-head"):
                state_chip(one.state, t)
                tag("code", shown(one.arguments), "work-command")
                took = figures.duration(one.ended - one.started) if one.ended else ""
                tag("span", f"{figures.moment(one.started)}{', ' + took if took else ''}", "quiet")
        with fold:
            if one.state in ("failed", "interrupted"):
                message, hint = split_message(one.said)
                with ui.element("section").classes("banner banner-failed").props("role=alert"):
                    tag("strong", t(f"use.{one.state}"))
                    if message and one.state == "failed":
                        tag("pre", message, "said")
                    if hint:
                        with ui.element("p"):
                            tag("b", t("run.what_to_do") + ": ")
                            tag("span", hint)
            if one.answer.strip():
                tag("pre", one.answer.strip(), "log answer", tabindex="0")
            self.logs[one.id] = tag("pre", self._log(one), "log", tabindex="0", role="log", aria_live="off")
            with ui.element("div").classes("actions"):
                if one.state == "running":
                    button(t("action.stop"), lambda: self._do(lambda: work.stop(one)), icon="stop")
                else:
                    button(t("use.forget"), lambda: self._do(lambda: work.remove(one)), icon="delete", style="quiet")
                button(t("action.copy"), lambda: copy(shown(one.arguments), t), icon="content_copy", style="quiet")

    def _log(self, one: Work) -> str:
        return figures.plain_log(one.said[-LOG_CHARACTERS:]) or self.t("run.log_empty")

    def _fold(self, id: str, opened: bool) -> None:
        self.open = self.open | {id} if opened else self.open - {id}

    def _do(self, what: Callable[[], None]) -> None:
        async def task() -> None:
            try:
                await run.io_bound(what)
            except (UserError, OSError) as error:
                say(str(error), bad=True, close=self.t("action.close"))
            await self.again()

        background_tasks.create(task(), context=ui.context.client.content)
