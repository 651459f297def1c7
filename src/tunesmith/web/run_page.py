"""`/run/{id}`: one run, live, from its folder alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from nicegui import run, ui

from tunesmith.runs.folder import RunFolder, Status
from tunesmith.web import chart, figures, run_actions, run_files
from tunesmith.web.commands import split_message
from tunesmith.web.files_view import draw_files
from tunesmith.web.follow import Follower
from tunesmith.web.language import Texts
from tunesmith.web.list_page import state_chip
from tunesmith.web.shell import button, copy, frame, tag

TILES = ("loss", "eval_loss", "speed", "left", "rate", "epoch", "memory", "started")


@dataclass(frozen=True)
class View:
    """Everything the page shows of a run at one moment, but its metrics."""

    status: Status
    doing: str
    log: str
    checkpoints: tuple[int, ...]
    artifacts: tuple[run_files.Artifact, ...]


def read_view(folder: RunFolder) -> View:
    """A moment of the run, from its folder."""
    return View(
        status=folder.status(),
        doing=run_actions.doing(folder.id),
        log=figures.plain_log(folder.log_tail()),
        checkpoints=tuple(folder.checkpoint_steps()),
        artifacts=tuple(run_files.artifacts(folder)),
    )


def tiles(status: Status, records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The figures above the chart, by name."""
    step: dict[str, Any] = next((r for r in reversed(records) if r.get("kind") == "step"), {})
    measured: dict[str, Any] = next((r for r in reversed(records) if r.get("kind") == "eval"), {})
    left = step.get("eta_s")
    if status.active and figures.is_number(left):
        left = max(0.0, left - (time.time() - step["time"])) if figures.is_number(step.get("time")) else left
    took = (time.time() if status.active else status.updated) - status.started
    return {
        "loss": figures.figure(step.get("loss", status.result.get("loss")), steady=True),
        "eval_loss": figures.figure(measured.get("eval_loss", status.result.get("eval_loss")), steady=True),
        "speed": figures.figure(step.get("tokens_per_s"), 3),
        "left": figures.duration(left) if status.active else figures.duration(took if status.started else None),
        "rate": figures.figure(step.get("lr"), 3),
        "epoch": figures.figure(step.get("epoch"), 3),
        "memory": figures.size(step["memory"]) if figures.is_number(step.get("memory")) else figures.NONE,
        "started": figures.moment(status.started or status.created),
    }


def register(command: Sequence[str]) -> None:
    """Lay the page at ``/run/{id}``."""

    @ui.page("/run/{id}")
    async def run_page(id: str) -> None:
        folder = await run.io_bound(run_files.known_run, id)
        if folder is None:
            ui.context.client.status_code = 404
            with frame("run.missing_title") as t:
                with ui.element("section").classes("empty"):
                    tag("h1", t("run.missing_title"))
                    tag("p", t("run.missing_body", id=id[:80]))
                    tag("a", t("run.back"), "cta", href="/")
            return
        with frame(title=folder.id) as t:
            page = _RunView(folder, command, t)
        await page.refresh()
        ui.timer(1.0, page.refresh)


class _RunView:
    """The page's parts, changed in place."""

    def __init__(self, folder: RunFolder, command: Sequence[str], t: Texts) -> None:
        self.folder, self.command, self.t = folder, command, t
        self.follower = Follower(folder.metrics_path)
        self.before: View | None = None
        self.gone = False
        tag("a", "← " + t("run.back"), "back", href="/")
        with ui.element("div").classes("title-row"):
            tag("h1", folder.id, "run-title")
            self.state = ui.element("div").classes("state-now").props("role=status")
            ui.element("div").classes("grow")
            self.actions = ui.element("div").classes("actions")
        self.banner = ui.element("div").classes("slot")
        self._progress()
        with ui.element("section").classes("card"):
            tag("h2", t("run.chart"))
            self.plot = ui.echart(chart.options([], t)).classes("plot").props("role=img")
            self.waiting = tag("p", t("run.waiting"), "quiet waiting")
        with ui.element("div").classes("two"):
            self._log()
            self._config()
        with ui.element("section").classes("card"):
            tag("h2", t("run.artifacts"))
            self.files = ui.element("div").classes("files")

    def _progress(self) -> None:
        with ui.element("section").classes("card"):
            with ui.element("div").classes("progress-row"):
                self.progress = tag("span", css="figure progress-text")
                self.percent = tag("span", css="figure quiet")
            with (
                ui.element("div")
                .classes("bar")
                .props("role=progressbar aria-valuemin=0 aria-valuemax=100") as self.meter
            ):
                self.bar = ui.element("div").classes("bar-fill")
            self.values: dict[str, Any] = {}
            self.labels: dict[str, Any] = {}
            with ui.element("dl").classes("tiles"):
                for name in TILES:
                    with ui.element("div").classes("tile"):
                        self.labels[name] = tag("dt", self.t(f"run.{name}"))
                        self.values[name] = tag("dd", figures.NONE, "figure")
            self.saved = tag("p", css="quiet saved")

    def _log(self) -> None:
        with ui.element("section").classes("card"):
            with ui.element("div").classes("card-head"):
                tag("h2", self.t("run.log"))
                tag("a", self.t("run.log_whole"), "small-link", href=self._file("log.txt"), target="_blank")
            self.log = tag("pre", self.t("run.log_empty"), "log", tabindex="0", role="log", aria_live="off")

    def _config(self) -> None:
        t = self.t
        with ui.element("section").classes("card"):
            text = self.folder.config_path.read_text(encoding="utf-8", errors="replace")
            with ui.element("div").classes("card-head"):
                tag("h2", t("run.config"))
                with ui.element("div").classes("actions"):
                    tag("a", t("action.reuse"), "small-link", href=self._reuse())
                    button(t("action.copy"), lambda: copy(text, t), icon="content_copy", style="quiet")
            tag("pre", text, "log", tabindex="0")

    def _reuse(self) -> str:
        return f"/new?from={quote(self.folder.id)}"

    def _file(self, name: str) -> str:
        return f"/run/{quote(self.folder.id)}/files/{quote(name)}"

    # -- keeping up ------------------------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Read the folder off the event loop and change what changed."""
        if self.gone:
            return
        try:
            result = await run.io_bound(lambda: (read_view(self.folder), self.follower.poll()))
        except OSError:  # deleted while we looked
            result = None
        if not self.folder.config_path.is_file():
            self.gone = True
            ui.navigate.to("/")
        if result is None:
            return
        view, more = result
        before, self.before = self.before, view
        self._show_figures(view)
        if more or before is None:
            self._show_chart()
        if before is None or before.status.active != view.status.active:
            self.waiting.set_text(self.t("run.waiting" if view.status.active else "run.no_metrics"))
        if before is None or self._said(before) != self._said(view):
            self._show_state(view)
        if before is None or before.log != view.log:
            self.log.set_text(view.log or self.t("run.log_empty"))
            self._keep_at_end()
        if before is None or before.artifacts != view.artifacts:
            self._show_files(view)

    @staticmethod
    def _said(view: View) -> tuple[object, ...]:
        """What the state, the buttons and the banner are made of."""
        status = view.status
        return status.state, status.what, status.error, view.doing, bool(view.checkpoints)

    def _show_figures(self, view: View) -> None:
        t, status = self.t, view.status
        share = min(1.0, status.step / status.total_steps) if status.total_steps else 0.0
        key = "run.progress" if status.total_steps else "run.progress_unknown"
        self.progress.set_text(t(key, step=status.step, total=status.total_steps))
        self.percent.set_text(f"{share:.0%}" if status.total_steps else "")
        self.bar.style(f"width:{share:.1%}")
        self.meter.props["aria-valuenow"] = round(share * 100)
        self.meter.props["aria-label"] = self.progress.text
        for name, text in tiles(status, self.follower.records).items():
            self.values[name].set_text(text)
        self.labels["left"].set_text(t("run.left" if status.active else "run.took"))
        steps = ", ".join(map(str, view.checkpoints[-8:]))
        if view.checkpoints:
            self.saved.set_text(t("run.checkpoints", steps=("… " if len(view.checkpoints) > 8 else "") + steps))
        else:
            self.saved.set_text("")

    def _show_chart(self) -> None:
        records = self.follower.records
        there = any(r.get("kind") in ("step", "eval") for r in records)
        self.plot.set_visibility(there)
        self.waiting.set_visibility(not there)
        self.plot.options.clear()
        self.plot.options.update(chart.options(records, self.t))
        self.plot.update()
        now = {name: self.values[name].text for name in ("loss", "eval_loss")}
        self.plot.props["aria-label"] = self.t("run.chart_label", **now)

    def _show_state(self, view: View) -> None:
        t, status, folder = self.t, view.status, self.folder
        self.state.clear()
        with self.state:
            state_chip(status.state, t)
            what = t(f"doing.{view.doing}") if view.doing else (status.what if status.active else "")
            if what:
                tag("span", what, "quiet")
        self.actions.clear()
        with self.actions:
            if status.state == "running":
                button(t("action.stop"), lambda: run_actions.stop(folder, t), icon="stop").set_enabled(not view.doing)
            if status.state in run_actions.RESUMABLE:
                resume = button(
                    t("action.resume"),
                    lambda: run_actions.resume(folder, self.command, t),
                    icon="play_arrow",
                    style="main",
                )
                resume.set_enabled(not view.doing)
            if view.checkpoints:
                tag("a", t("use.title"), "small-link", href=f"/run/{quote(folder.id)}/use")
            if status.state != "running":
                delete = button(
                    t("action.delete"),
                    lambda: run_actions.ask_delete(folder, t, lambda: ui.navigate.to("/")),
                    icon="delete",
                    style="danger",
                )
                delete.set_enabled(not view.doing)
        self.banner.clear()
        if status.state in run_actions.RESUMABLE:
            with self.banner, ui.element("section").classes(f"banner banner-{status.state}").props("role=alert"):
                tag("strong", t(f"run.{status.state}_title"))
                message, hint = split_message(status.error)
                if message:
                    tag("pre", message, "said")
                if hint:
                    with ui.element("p"):
                        tag("b", t("run.what_to_do") + ": ")
                        tag("span", hint)
                tag("p", t(f"run.{status.state}_body"))
                tag("p", t("run.resume_goes_on" if view.checkpoints else "run.resume_begins"))
                if status.state == "failed":
                    tag("a", t("action.reuse"), href=self._reuse())

    def _keep_at_end(self) -> None:
        """Scroll the log to its end, unless the person scrolled up to read."""
        ui.run_javascript(
            f"const e = getHtmlElement({self.log.id}); if (e && (!e.dataset.seen || e.dataset.end === '1')) {{"
            " requestAnimationFrame(() => { e.scrollTop = e.scrollHeight; }); }"
            " if (e && !e.dataset.seen) { e.dataset.seen = '1'; e.dataset.end = '1'; e.addEventListener('scroll', () => {"
            " e.dataset.end = e.scrollTop + e.clientHeight >= e.scrollHeight - 24 ? '1' : '0'; }); }"
        )

    def _show_files(self, view: View) -> None:
        self.files.clear()
        with self.files:
            draw_files(self.folder.id, view.artifacts, self.t)
