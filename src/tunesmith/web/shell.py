"""The frame of every page: head, header, language, colours; and the small parts that pages are put together from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from tunesmith.web.language import COOKIE, NAMES, Texts, choose

THEME_COOKIE = "tunesmith_theme"
THEMES = {"auto": (None, "contrast"), "light": (False, "light_mode"), "dark": (True, "dark_mode")}
_YEAR = 60 * 60 * 24 * 365


def tag(name: str, text: str = "", css: str = "", **attributes: Any) -> TextElement:
    """An HTML element with text. Underscores in attribute names are dashes, a trailing one is dropped (``for_``)."""
    element = TextElement(tag=name, text=text)
    if css:
        element.classes(css)
    for key, value in attributes.items():
        element.props[key.rstrip("_").replace("_", "-")] = value
    return element


def button(text: str, on_click: Any = None, *, icon: str | None = None, css: str = "", style: str = "plain") -> Any:
    """A push button: ``main`` (one per page), ``plain``, ``quiet`` or ``danger``."""
    look = {
        "main": ("primary", "unelevated"),
        "plain": (None, "outline"),
        "quiet": (None, "flat"),
        "danger": (None, "flat"),
    }
    color, shape = look[style]
    made = ui.button(text, on_click=on_click, icon=icon, color=color)
    return made.props(f"no-caps dense {shape}").classes(f"act act-{style} {css}")


def set_cookie(name: str, value: str) -> str:
    """JavaScript that keeps a choice in this browser."""
    return f"document.cookie = {json.dumps(f'{name}={value}; path=/; max-age={_YEAR}; SameSite=Strict')};"


@contextmanager
def frame(title_key: str = "", *, title: str = "", here: str = "") -> Iterator[Texts]:
    """A page with header; the texts of the browser's language come out. ``here`` marks the current entry.

    The title is a text of the page (``title_key``) or a name as it is (``title``).
    """
    request = ui.context.client.request
    t = Texts(choose(request.cookies.get(COOKIE), request.headers.get("accept-language")))
    theme = request.cookies.get(THEME_COOKIE, "auto")
    theme = theme if theme in THEMES else "auto"
    ui.page_title(f"{title or t(title_key)} · Tunesmith")
    ui.colors(primary="#0f766e", negative="#b42318", positive="#15803d", warning="#b45309", info="#1d4ed8")
    ui.add_head_html(
        '<link rel="stylesheet" href="/static/page.css">'
        f"<script>document.documentElement.lang={json.dumps(t.html_lang)}</script>"
    )
    lost = json.dumps([t("lost.title"), t("lost.body")]).replace("<", "\\u003c")
    ui.add_body_html(
        "<script>addEventListener('DOMContentLoaded',()=>{const w=" + lost + ";"
        "document.querySelectorAll('#popup span').forEach((s,i)=>s.textContent=w[i])})</script>"
    )
    dark = ui.dark_mode(THEMES[theme][0])
    tag("a", t("nav.skip"), "skip", href="#content")
    with ui.element("header").classes("top"):
        with ui.element("div").classes("top-in"):
            tag("a", "Tunesmith", "brand", href="/")
            with ui.element("nav"):
                for key, address in (("nav.runs", "/"), ("nav.new", "/new"), ("nav.data", "/data")):
                    link = tag("a", t(key), "nav-link", href=address)
                    if here == key:
                        link.props["aria-current"] = "page"
            ui.element("div").classes("grow")
            _language_switch(t)
            _theme_switch(t, theme, dark)
    with ui.element("main").classes("page").props("id=content tabindex=-1"):
        yield t


def _language_switch(t: Texts) -> None:
    with ui.element("div").classes("languages").props("role=group") as group:
        group.props["aria-label"] = t("nav.language")
        for code, name in NAMES.items():
            pick = tag("button", name, "language", type="button", lang="zh-CN" if code == "zh" else "en")
            pick.props["aria-pressed"] = "true" if code == t.language else "false"
            pick.on("click", js_handler="() => {" + set_cookie(COOKIE, code) + " location.reload(); }")


def _theme_switch(t: Texts, theme: str, dark: Any) -> None:
    def turn() -> None:
        nonlocal theme
        names = list(THEMES)
        theme = names[(names.index(theme) + 1) % len(names)]
        dark.value, icon = THEMES[theme]
        knob.props["icon"] = icon
        ui.run_javascript(set_cookie(THEME_COOKIE, theme))

    knob = ui.button(icon=THEMES[theme][1], on_click=turn, color=None).props("flat round dense size=sm").classes("knob")
    knob.props["aria-label"] = t("nav.theme")
    knob.props["title"] = t("nav.theme")


def say(text: str, *, bad: bool = False, close: str = "") -> None:
    """A short message at the edge of the page; bad ones stay until closed."""
    extra: dict[str, Any] = {"timeout": 0, "close_button": close} if bad else {}
    ui.notify(text, type="negative" if bad else "positive", multi_line=True, position="bottom", **extra)


async def copy(text: str, t: Texts) -> None:
    """Put ``text`` on the clipboard, also where the browser's own way is not allowed (a page without https)."""
    await ui.run_javascript(
        f"const text = {json.dumps(text)};"
        "try { await navigator.clipboard.writeText(text); } catch {"
        " const box = Object.assign(document.createElement('textarea'), {value: text});"
        " document.body.append(box); box.select(); document.execCommand('copy'); box.remove(); }"
    )
    say(t("action.copied"))
