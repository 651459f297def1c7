"""Rows of a set on the page, a few at a time, in a frame without rights (see ``data_rows``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nicegui import ui

from tunesmith.web import data_rows
from tunesmith.web.language import Texts
from tunesmith.web.shell import button, tag

COUNT = 5
# No script can run in the frame; `allow-same-origin` lets this page's own script measure it and hand on its colours.
_SANDBOX = "allow-same-origin"
_FIT = """
const frame = getHtmlElement(%d);
const fit = () => {
  const body = frame?.contentDocument?.body;
  if (!body) return;
  body.className = document.body.className;
  frame.style.height = Math.min(body.scrollHeight + 2, 0.8 * innerHeight) + 'px';
};
frame?.addEventListener('load', fit);
new MutationObserver(fit).observe(document.body, {attributes: true, attributeFilter: ['class']});
addEventListener('resize', fit);
fit();
"""


class RowsView:
    """Draws ``answer``: the rows of the set ``name`` from ``first``. ``go(name, first)`` asks for others."""

    def __init__(self, answer: Mapping[str, Any], name: str, first: int, t: Texts, go: Any) -> None:
        count = len(answer["rows"])
        with ui.element("section").classes("card rows-card"):
            with ui.element("div").classes("card-head"):
                with ui.element("div"):
                    tag(
                        "h2",
                        t("rows.title", first=f"{first:,}", last=f"{first + count - 1:,}"),
                        "rows-title",
                        tabindex="-1",
                    )
                    tag("p", name, "quiet rows-set")
                with ui.element("div").classes("actions"):
                    back = button(
                        t("rows.back"), lambda: go(name, max(1, first - COUNT)), icon="chevron_left", style="quiet"
                    )
                    back.set_enabled(first > 1)
                    on = button(t("rows.next"), lambda: go(name, first + count), icon="chevron_right", style="quiet")
                    on.set_enabled(count == COUNT)
            if not answer.get("model"):
                tag("p", t("rows.no_model"), "quiet")
            frame = ui.element("iframe").classes("rows-frame")
            frame.props["sandbox"] = _SANDBOX
            frame.props["title"] = t("rows.frame", name=name)
            frame.props["tabindex"] = "0"
            frame.props["srcdoc"] = data_rows.document(answer, t)
        ui.run_javascript(_FIT % frame.id)
        ui.run_javascript("document.querySelector('.rows-title')?.focus({preventScroll: true});"
                          "document.querySelector('.rows-card')?.scrollIntoView({block: 'nearest', behavior: 'smooth'})")  # fmt: skip
