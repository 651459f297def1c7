"""`/`: every run, live, from the run folders alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nicegui import run, ui

from tunesmith.runs.folder import RunFolder, list_runs
from tunesmith.web import figures, run_actions
from tunesmith.web.follow import last_record
from tunesmith.web.language import Texts
from tunesmith.web.shell import button, frame, tag

FIRST = 100
ICONS = {
    "created": "hourglass_empty", "running": "play_circle", "finished": "check_circle",
    "stopped": "pause_circle", "failed": "error", "interrupted": "bolt",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One run, as the list shows it."""

    folder: RunFolder
    state: str
    what: str
    step: str
    share: float
    loss: str
    started: str
    duration: str
    doing: str
    """What this page is doing to the run: ``stop``, ``resume`` … or nothing."""


def read_row(folder: RunFolder) -> Row:
    """The row of one run, from its folder."""
    status = folder.status()
    record = last_record(folder.metrics_path, "step") or {}
    until = time.time() if status.active else status.updated
    total = status.total_steps
    return Row(
        folder=folder,
        state=status.state,
        what=status.what if status.active else "",
        step=f"{status.step} / {total}" if total else (str(status.step) if status.step else figures.NONE),
        share=min(1.0, status.step / total) if total else 0.0,
        loss=figures.figure(record.get("loss", status.result.get("loss")), steady=True),
        started=figures.moment(status.started or status.created),
        duration=figures.duration(until - status.started) if status.started else figures.NONE,
        doing=run_actions.doing(folder.id),
    )


def read_rows(most: int) -> tuple[list[Row], int]:
    """The newest ``most`` rows and how many runs there are."""
    runs = list_runs()
    rows = []
    for folder in runs[:most]:
        try:
            rows.append(read_row(folder))
        except OSError:  # deleted while we looked
            continue
    return rows, len(runs)


def state_chip(state: str, t: Texts) -> Any:
    """The state as icon, word and colour."""
    with ui.element("span").classes(f"chip chip-{state}") as chip:
        ui.icon(ICONS[state]).props("aria-hidden=true")
        tag("span", t(f"state.{state}"))
    return chip


class _RowView:
    """One row on the page, changed in place so that focus and pointer stay where they are."""

    def __init__(self, row: Row, command: Sequence[str], t: Texts, changed: Any) -> None:
        self.t, self.command, self.changed = t, command, changed
        self.folder = row.folder
        with ui.element("div").classes("run-row").props("role=row"):
            with self._cell("cell-name", ""):
                tag("a", row.folder.id, "run-name", href=f"/run/{row.folder.id}")
            with self._cell("cell-state", "list.state") as self.state:
                pass
            with self._cell("cell-step", "list.step"):
                self.step = tag("span", css="figure")
                with ui.element("div").classes("bar small"):
                    self.bar = ui.element("div").classes("bar-fill")
            with self._cell("cell-loss", "list.loss"):
                self.loss = tag("span", css="figure")
            with self._cell("cell-started", "list.started"):
                self.started = tag("span", css="figure")
            with self._cell("cell-duration", "list.duration"):
                self.duration = tag("span", css="figure")
            with self._cell("cell-actions", "") as self.actions:
                pass
        self.row: Row | None = None
        self.show(row)

    def _cell(self, css: str, key: str) -> Any:
        cell = ui.element("div").classes(f"cell {css}").props("role=cell")
        if key:
            cell.props["data-label"] = self.t(key)
        return cell

    def show(self, row: Row) -> None:
        before, self.row = self.row, row
        self.step.set_text(row.step)
        self.bar.style(f"width:{row.share:.1%}")
        self.loss.set_text(row.loss)
        self.started.set_text(row.started)
        self.duration.set_text(row.duration)
        if before is None or (before.state, before.what, before.doing) != (row.state, row.what, row.doing):
            what = self.t(f"doing.{row.doing}") if row.doing else row.what
            self.state.clear()
            with self.state:
                state_chip(row.state, self.t)
                if what:
                    tag("span", what, "quiet what")
        if before is None or (before.state, before.doing) != (row.state, row.doing):
            self.actions.clear()
            with self.actions:
                self._buttons(row)

    def _buttons(self, row: Row) -> None:
        t, folder = self.t, self.folder
        made = []
        if row.state == "running":
            made.append((button(t("action.stop"), lambda: run_actions.stop(folder, t), style="plain"), "stop"))
        if row.state in run_actions.RESUMABLE:
            resume = button(t("action.resume"), lambda: run_actions.resume(folder, self.command, t), style="plain")
            made.append((resume, "resume"))
        if row.state != "running":
            delete = button("", lambda: run_actions.ask_delete(folder, t, self.changed), icon="delete", style="quiet")
            delete.props["title"] = t("action.delete")
            made.append((delete, "delete"))
        for made_button, action in made:
            made_button.set_enabled(not row.doing)
            made_button.props["aria-label"] = f"{t(f'action.{action}')} {folder.id}"


def register(command: Sequence[str]) -> None:
    """Lay the page at ``/``."""

    @ui.page("/")
    async def list_page() -> None:
        with frame("list.title", here="nav.runs") as t:
            with ui.element("div").classes("title-row"):
                tag("h1", t("list.title"))
                ui.element("div").classes("grow")
                tag("a", t("nav.new"), "cta", href="/new")
            body = ui.element("div").classes("runs-body")
        await _List(body, command, t).start()


class _List:
    def __init__(self, body: Any, command: Sequence[str], t: Texts) -> None:
        self.body, self.command, self.t = body, command, t
        self.views: dict[str, _RowView] = {}
        self.shown: tuple[list[str], int] | None = None
        self.most = FIRST

    async def start(self) -> None:
        await self.refresh()
        ui.timer(1.5, self.refresh)

    async def refresh(self) -> None:
        result = await run.io_bound(read_rows, self.most)
        if result is None:
            return
        rows, count = result
        now = ([row.folder.id for row in rows], count)
        if now != self.shown:
            self.shown = now
            self._rebuild(rows, count)
        else:
            for row in rows:
                if (view := self.views[row.folder.id]).row != row:
                    view.show(row)

    def _rebuild(self, rows: list[Row], count: int) -> None:
        t = self.t
        self.body.clear()
        self.views = {}
        with self.body:
            if not rows:
                self._empty()
                return
            with ui.element("div").classes("runs").props("role=table") as table:
                table.props["aria-label"] = t("list.title")
                with ui.element("div").classes("run-row run-head").props("role=row"):
                    for key in ("name", "state", "step", "loss", "started", "duration"):
                        tag("div", t(f"list.{key}"), f"cell cell-{key}", role="columnheader")
                    with ui.element("div").classes("cell cell-actions").props("role=columnheader"):
                        tag("span", t("list.actions"), "unseen")
                for row in rows:
                    self.views[row.folder.id] = _RowView(row, self.command, t, self.refresh_soon)
            if count > len(rows):
                button(t("list.more", count=count), self.show_all, style="quiet")

    async def show_all(self) -> None:
        self.most = 1_000_000
        await self.refresh()

    def refresh_soon(self) -> None:
        with self.body:
            ui.timer(0.01, self.refresh, once=True)

    def _empty(self) -> None:
        t = self.t
        with ui.element("section").classes("empty"):
            ui.icon("tune").classes("empty-icon").props("aria-hidden=true")
            tag("h2", t("list.empty_title"))
            tag("p", t("list.empty_body"))
            tag("a", t("list.empty_action"), "cta", href="/new")
            tag("p", t("list.empty_command"), "quiet")
            tag("code", "tunesmith demo", "command")
