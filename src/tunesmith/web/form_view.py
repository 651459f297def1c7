"""The form on the page: one control per field of the form model, changed in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui import ui

from tunesmith.web import form_values
from tunesmith.web.field_view import FieldView
from tunesmith.web.form_model import Field, leaves
from tunesmith.web.form_values import Problem
from tunesmith.web.language import Texts
from tunesmith.web.shell import tag


class FormView:
    """All fields: the basic ones in sections, the rest under Advanced. ``on_change`` is called after every change."""

    def __init__(
        self, fields: tuple[Field, ...], state: dict[str, Any], t: Texts, on_change: Callable[[], None]
    ) -> None:
        self.fields, self.state, self.t, self.on_change = fields, state, t, on_change
        self.views: dict[str, FieldView] = {}
        self.named: set[str] = set()
        """Fields that the last error message named."""
        self.touched: set[str] = set()
        self.reading = form_values.read_values(fields, state)
        self._parts: dict[str, list[Callable[[], None]]] = {}
        """By union or switchable group: what to draw anew when it changes."""
        self._sections: list[_Section] = []

    # -- state -----------------------------------------------------------------------------------------------------

    def change(self, field: Field, value: Any) -> None:
        """A control has a new value."""
        if value == form_values.as_typed(field, field.default) and (field.has_default or value in ("", None, False)):
            self.state.pop(field.id, None)
        else:
            self.state[field.id] = value
        self.touched.add(field.id)
        self.named.discard(field.id)
        self.reading = form_values.read_values(self.fields, self.state)
        for redraw in self._parts.get(field.id, []):
            redraw()
        if field.id in self.views:
            self.views[field.id].mark()
        for section in self._sections:
            section.count()
        self.on_change()

    def problem_of(self, field: Field) -> Problem | None:
        """What is wrong with a field, as far as it should be said by now."""
        if field.id in self.named:
            return Problem("form.named_here")
        return self.reading.problems.get(field.id) if field.id in self.touched else None

    def show_all_problems(self) -> bool:
        """Mark everything that cannot be read; False when there is nothing."""
        self.touched |= set(self.reading.problems)
        self._mark_all()
        self._open_sections_of(set(self.reading.problems))
        return bool(self.reading.problems)

    def name(self, fields: list[Field]) -> None:
        """Mark the fields that an error message names, and open the sections they are in."""
        self.named = {f.id for f in fields}
        self._open_sections_of(self.named)
        self._mark_all()

    def _mark_all(self) -> None:
        for view in list(self.views.values()):
            view.mark()

    def _open_sections_of(self, ids: set[str]) -> None:
        for section in self._sections:
            if any(leaf.id in ids for leaf in section.leaves()):
                section.open()

    # -- drawing ---------------------------------------------------------------------------------------------------

    def draw_basic(self) -> None:
        """The first screen: the few fields that matter, by top-level section."""
        for top in self.fields:
            if not any(leaf.basic for leaf in leaves((top,))):
                continue
            with ui.element("section").classes("form-section"):
                with ui.element("div").classes("form-side"):
                    tag("h2", self.title(top))
                    if top.shape == "group":
                        tag("p", self.t.help(top.help), "quiet")
                with ui.element("div").classes("form-fields"):
                    self._draw((top,), basic=True)

    def draw_advanced(self) -> None:
        """Every other field, in folded sections with a search box."""
        t = self.t
        tops = [top for top in self.fields if any(not leaf.basic for leaf in leaves((top,)))]
        single = [top for top in tops if top.shape not in ("group", "union")]
        with ui.element("section").classes("advanced"):
            with ui.element("div").classes("advanced-head"):
                with ui.element("div"):
                    tag("h2", t("form.advanced"))
                    tag("p", t("form.advanced_lead"), "quiet")
                find = ui.input(placeholder=t("form.find"), on_change=lambda e: self._find(e.value or ""))
                find.props("outlined dense debounce=200 clearable type=search").classes("find")
                find.props["aria-label"] = t("form.find")
                with find.add_slot("prepend"):
                    ui.icon("search")
            for top in tops:
                if top not in single:
                    self._sections.append(_Section(self.title(top), (top,), self))
            if single:
                title = self.title(single[0]) if len(single) == 1 else t("form.other")
                self._sections.append(_Section(title, tuple(single), self))
            self.none_found = tag("p", t("form.find_none"), "quiet")
            self.none_found.set_visibility(False)

    def _find(self, words: str) -> None:
        words = words.strip().lower()
        hits = [section.find(words) for section in self._sections]
        self.none_found.set_visibility(bool(words) and not any(hits))

    def draw_rest(self, fields: tuple[Field, ...]) -> None:
        """The fields of an advanced section."""
        self._draw(fields, basic=False)

    def _draw(self, fields: tuple[Field, ...], *, basic: bool) -> None:
        for f in fields:
            if f.shape == "group":
                if f.nullable and f.basic == basic:
                    self._view(f)
                self._draw_part(f, basic)
            elif f.shape == "union":
                if f.basic == basic:
                    self._view(f)
                self._draw_part(f, basic)
            elif f.basic == basic:
                self._view(f)

    def _draw_part(self, parent: Field, basic: bool) -> None:
        """The fields below a union or group, drawn anew when another kind is chosen or the group is switched."""
        if parent.shape == "group" and not parent.nullable:
            self._draw(parent.fields, basic=basic)
            return
        part = ui.element("div").classes("part")

        def redraw() -> None:
            if part.is_deleted:
                return
            for leaf in leaves(parent.fields + tuple(f for k in parent.kinds for f in k.fields)):
                if (view := self.views.get(leaf.id)) is not None and leaf.basic == basic:
                    del self.views[view.field.id]
            part.clear()
            with part:
                if parent.shape == "group":
                    if form_values.shown(parent, self.state):
                        self._draw(parent.fields, basic=basic)
                    return
                chosen = form_values.chosen_kind(parent, self.state)
                for kind in parent.kinds:
                    if kind.name == chosen:
                        if parent.basic == basic and (help := kind.help.get(self.t.language)):
                            tag("p", help, "quiet kind-help")
                        self._draw(kind.fields, basic=basic)

        self._parts.setdefault(parent.id, []).append(redraw)
        redraw()

    def _view(self, f: Field) -> None:
        label = ".".join(f.path[1:] + (("kind",) if f.shape == "union" and not f.label else ()))
        self.views[f.id] = FieldView(f, self, self.title(f) if f.label else label or f.name, beside_title=not label)

    def title(self, f: Field) -> str:
        """What a field is called over its part of the form."""
        return self.t.help(f.label) if f.label else f.name


class _Section:
    """A folded section of Advanced; its fields are drawn when it is first opened."""

    def __init__(self, title: str, fields: tuple[Field, ...], form: FormView) -> None:
        self.fields, self.form, self.drawn = fields, form, False
        help = form.t.help(fields[0].help) if len(fields) == 1 else ""
        self.box = ui.expansion(title, caption=help, on_value_change=lambda e: self._draw() if e.value else None)
        self.box.classes("fold").props("dense-toggle")
        with self.box.add_slot("header"):
            with ui.element("div").classes("fold-head"):
                with ui.element("div"):
                    tag("div", title, "fold-title")
                    if help:
                        tag("div", help, "quiet fold-help")
                self.changed = tag("span", css="badge badge-changed")
        self.count()

    def leaves(self) -> list[Field]:
        """The fields of this section that are drawn now."""
        return [f for f in form_values.active(self.fields, self.form.state) if not f.basic]

    def count(self) -> None:
        """Say how many of its fields differ from their defaults."""
        number = sum(f.id in self.form.state for f in self.leaves())
        self.changed.set_text(self.form.t("form.changed", count=number) if number else "")
        self.changed.set_visibility(number > 0)

    def _draw(self) -> None:
        if self.drawn:
            return
        self.drawn = True
        with self.box, ui.element("div").classes("form-fields fold-fields"):
            self.form.draw_rest(self.fields)

    def open(self) -> None:
        """Unfold it."""
        self._draw()
        self.box.value = True

    def find(self, words: str) -> bool:
        """Show only the fields that match; all, folded, when ``words`` is empty."""
        if not words:
            for view in self._views():
                view.box.set_visibility(True)
            self.box.set_visibility(True)
            self.box.value = False
            return True
        hits = {
            f.id
            for f in self.leaves()
            if words in f.key.lower()
            or any(words in text.lower() for text in (*f.help.values(), *(f.label or {}).values()))
        }
        self.box.set_visibility(bool(hits))
        if hits:
            self.open()
            for view in self._views():
                view.box.set_visibility(view.field.id in hits)
        return bool(hits)

    def _views(self) -> list[FieldView]:
        ids = {f.id for f in self.leaves()}
        return [view for id, view in self.form.views.items() if id in ids]
