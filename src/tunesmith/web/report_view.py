"""A report of the data on the page: figures, then the findings by check, the gravest first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui import ui

from tunesmith.web import histogram
from tunesmith.web.data_report import SEVERITIES, Finding, Group, Report
from tunesmith.web.figures import is_number
from tunesmith.web.language import Texts, table
from tunesmith.web.sentences import mend_in_words, reason_in_words
from tunesmith.web.shell import button, tag

FIRST = 3
"""Findings of a check that are shown before more are asked for."""
ICONS = {"error": "error", "warning": "warning", "info": "info"}


def severity_chip(severity: str, text: str) -> Any:
    """A severity as icon, words and colour."""
    with ui.element("span").classes(f"chip severity-{severity}") as chip:
        ui.icon(ICONS[severity]).props("aria-hidden=true")
        tag("span", text)
    return chip


class ReportView:
    """Draws a report where it is made. ``show_row(set, number)`` is called for the row of a finding: which training set,
    from 0, and its row, from 1."""

    def __init__(self, report: Report, t: Texts, show_row: Callable[[int, int], Any]) -> None:
        self.report, self.t, self.show_row = report, t, show_row
        self.severity = ""
        self.opened: set[str] = set()
        with ui.element("section").classes("card"):
            tag("h2", t("sets.figures"))
            self._figures()
        with ui.element("section").classes("card findings"):
            with ui.element("div").classes("card-head"):
                tag("h2", t("sets.findings"))
                self.filters = ui.element("div").classes("filters").props("role=group")
                self.filters.props["aria-label"] = t("sets.filter")
            if t.language != "en" and any(report.count(s) for s in SEVERITIES):
                tag("p", t("sets.as_said"), "quiet as-said")
            self.body = ui.element("div").classes("finding-groups")
        self._draw_filters()
        self._draw_findings()

    # -- figures ---------------------------------------------------------------------------------------------------

    def _figures(self) -> None:
        t, report = self.t, self.report
        if report.head.get("stopped"):
            with ui.element("div").classes("banner banner-failed").props("role=alert"):
                tag("strong", t("sets.stopped"))
                tag("pre", str(report.head["stopped"]), "said")
        for source in report.sets:
            with ui.element("p").classes("set-line"):
                tag("b", str(source.get("name", "")))
                line = t("sets.set_line", rows=_count(source.get("rows")), format=source.get("format", ""))
                reason = reason_in_words(str(source.get("reason", "")), t)
                tag("span", t("sets.because", line=line, reason=reason), "quiet")
            notes = source.get("notes")
            for note in notes if isinstance(notes, list) else []:
                tag("p", str(note), "quiet set-note")
        with ui.element("dl").classes("tiles"):
            for name, value in self._tiles():
                with ui.element("div").classes("tile"):
                    tag("dt", t(f"sets.{name}"))
                    tag("dd", value, "figure")
        self._charts()
        with ui.element("p"):
            tag("b", t("sets.steps") + ": ")
            tag("span", self._steps())

    def _steps(self) -> str:
        """The optimizer steps in words; those of the command where the numbers are missing."""
        t, plan = self.t, self.report.training
        if plan.get("none") in ("no_rows", "other_kind"):
            return t(f"steps.{plan['none']}", stage=str(plan.get("stage", "")))
        names = ("steps", "rows", "batch", "max_steps", "held_out")
        if plan.get("tokens") or not all(is_number(plan.get(name)) for name in (*names, "epochs")):
            return str(self.report.head.get("steps", ""))
        values = {name: _count(plan[name]) for name in names} | {"epochs": f"{plan['epochs']:g}"}
        line = t("steps.limited" if plan["max_steps"] else "steps.counted", **values)
        if plan["held_out"]:
            line = t("steps.held_out", line=line, **values)
        return t("steps.few", line=line) if plan.get("few") else line

    def _tiles(self) -> list[tuple[str, str]]:
        shape, tokens = self.report.shape, self.report.tokens
        tiles = [("readable", _count(shape.get("rows")))]
        if shape.get("unreadable"):
            tiles.append(("unreadable", _count(shape.get("unreadable"))))
        kinds = shape.get("kinds")
        if isinstance(kinds, dict) and kinds:
            tiles.append(("kinds", ", ".join(map(str, kinds))))
        tiles.append(("characters", _count(shape.get("characters"))))
        if is_number(tokens.get("p50")):
            tiles.append(("token_sum", _count(tokens.get("total"))))
            tiles.append(("median", _count(tokens["p50"])))
            tiles.append(("longest", _count(tokens.get("max"))))
            share = tokens.get("learned_share")
            tiles.append(("learned", f"{share:.0%}" if is_number(share) else "–"))
        return tiles

    def _charts(self) -> None:
        t, shape, tokens = self.t, self.report.shape, self.report.tokens
        roles = shape.get("roles")
        if isinstance(roles, dict) and roles:
            with ui.element("p"):
                tag("b", t("sets.roles") + ": ")
                tag("span", ", ".join(f"{role} {_count(n)}" for role, n in roles.items()))
        with ui.element("div").classes("charts"):
            self._chart("sets.lengths", histogram.bins_of(tokens.get("bins")))
            self._chart("sets.turns", histogram.bins_of_counts(shape.get("turns")))
        if not self.report.head.get("tokens"):
            tag("p", t("sets.no_tokens"), "quiet")
        seen, rows = tokens.get("rendered_rows", 0), tokens.get("of_rows", 0)
        unreadable = shape.get("unreadable", 0)
        if all(map(is_number, (seen, rows, unreadable))) and seen + unreadable < rows:
            tag("p", t("sets.sample", seen=_count(seen), rows=_count(rows)), "quiet")

    def _chart(self, title: str, bins: list[histogram.Bin]) -> None:
        if not bins:
            return
        text = self.t(title)
        label = f"{text}: " + "; ".join(f"{histogram.name(b)}: {b[2]:,}" for b in bins if b[2])
        with ui.element("figure"):
            tag("figcaption", text)
            ui.html(histogram.svg(bins, label), sanitize=False)  # made of numbers, and escaped

    # -- findings --------------------------------------------------------------------------------------------------

    def _draw_filters(self) -> None:
        self.filters.clear()
        total = sum(self.report.count(s) for s in SEVERITIES)
        if not total:
            return
        with self.filters:
            for severity in ("", *SEVERITIES):
                count = self.report.count(severity) if severity else total
                text = self.t(f"severity.{severity or 'all'}", count=f"{count:,}")
                pick = tag("button", text, f"filter filter-{severity or 'all'}", type="button")
                pick.props["aria-pressed"] = "true" if severity == self.severity else "false"
                if not count:
                    pick.props["disabled"] = True
                pick.on("click", lambda _, s=severity: self._filter(s))

    def _filter(self, severity: str) -> None:
        self.severity = severity
        for pick, one in zip(list(self.filters), ("", *SEVERITIES)):  # changed in place, so that the focus stays
            pick.props["aria-pressed"] = "true" if one == severity else "false"
            pick.update()
        self._draw_findings()

    def _draw_findings(self) -> None:
        self.body.clear()
        with self.body:
            shown = [g for g in self.report.groups if g.of(self.severity)]
            if not shown:
                with ui.element("p").classes("nothing").props("role=status"):
                    ui.icon("check_circle").props("aria-hidden=true")
                    tag("span", self.t("sets.nothing"))
            for group in shown:
                with ui.element("section").classes("finding-group") as box:
                    self._group(group, box)

    def _group(self, group: Group, box: Any) -> None:
        t = self.t
        title = self.title(group)
        with ui.element("div").classes("group-head"):
            tag("h3", title)
            for severity in SEVERITIES:
                if group.counts[severity] and self.severity in ("", severity):
                    severity_chip(severity, t(f"severity.{severity}", count=f"{group.counts[severity]:,}"))
        found = group.of(self.severity)
        shown = found if group.check in self.opened else found[:FIRST]
        before = ""
        with ui.element("ul").classes("finding-list"):
            for finding in shown:
                with ui.element("li").classes(f"finding finding-{finding.severity}"):
                    self._finding(finding, group.check, with_mend=finding.mend != before)
                before = finding.mend
        total = group.count(self.severity)
        if len(shown) < len(found):
            more = button(t("sets.show_all", count=f"{len(found):,}"), lambda: self._open(group, box), style="quiet")
            more.props["aria-label"] = f"{t('sets.show_all', count=len(found))}: {title}"
        elif total > len(found):
            tag("p", t("sets.not_kept", shown=f"{len(found):,}", count=f"{total:,}"), "quiet")

    def title(self, group: Group) -> str:
        """The heading of a check in the page's language; that of the command where the page has none."""
        key = f"check.{group.check}"
        return self.t(key) if key in table(self.t.language) else group.title

    def _open(self, group: Group, box: Any) -> None:
        self.opened.add(group.check)
        box.clear()
        with box:
            self._group(group, box)
        ui.run_javascript(
            f"getHtmlElement({box.id})?.querySelectorAll('.finding')[{FIRST}]"
            "?.querySelector('button')?.focus({preventScroll: true})"
        )

    def _finding(self, finding: Finding, check: str, *, with_mend: bool) -> None:
        t = self.t
        message = finding.message.removeprefix(finding.place).lstrip(":, ") if finding.place else finding.message
        with ui.element("p").classes("finding-line"):
            with ui.element("span").classes(f"word severity-{finding.severity}"):
                ui.icon(ICONS[finding.severity]).props("aria-hidden=true")
                tag("span", t(f"severity.one_{finding.severity}"))
            tag("span", message)
        if finding.place:
            with ui.element("p").classes("place"):
                tag("code", finding.place)
                where = self.report.row_of(finding)
                if where is not None:
                    look = button(t("sets.show_row"), lambda: self.show_row(*where), style="quiet", css="row-link")
                    look.props["aria-label"] = f"{t('sets.show_row')}: {finding.place}"
        if finding.excerpt:
            tag("pre", finding.excerpt, "excerpt")
        if finding.mend and with_mend:
            with ui.element("p").classes("mend"):
                tag("b", t("sets.mend") + ": ")
                tag("span", mend_in_words(check, finding.mend, t))


def _count(value: Any) -> str:
    return f"{value:,}" if is_number(value) else "–"
