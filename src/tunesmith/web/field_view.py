"""One field of the form on the page: name, control, help, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from nicegui import ui

from tunesmith.web import form_values
from tunesmith.web.form_model import Field
from tunesmith.web.form_values import Problem, number_text
from tunesmith.web.language import Texts
from tunesmith.web.shell import tag

NOT_SET = -1


class Form(Protocol):
    """What a field asks of the form it is in."""

    t: Texts

    @property
    def state(self) -> Mapping[str, Any]: ...

    def change(self, field: Field, value: Any) -> None: ...

    def problem_of(self, field: Field) -> Problem | None: ...


class FieldView:
    """One field: name, control, help, and what is wrong with it."""

    def __init__(self, field: Field, form: Form, label: str, beside_title: bool = False) -> None:
        self.field, self.form, self.t = field, form, form.t
        t = self.t
        self.id = f"field-{field.id}"
        with ui.element("div").classes(f"field field-{field.shape}") as self.box:
            with ui.element("div").classes("field-head"):
                if field.shape in ("switch", "group"):
                    self.control = ui.switch(label, value=bool(self._shown()), on_change=self._changed).props("dense")
                    self.control.classes("field-switch")
                else:
                    tag("label", label, "unseen" if beside_title and field.basic else "field-key", for_=self.id)
                if field.must_be_filled:
                    tag("span", t("form.required"), "badge")
                ui.element("span").classes("grow")
                tag("span", self._facts(), "field-facts")
                self.back = ui.button(icon="undo", on_click=self.reset, color=None).props("flat round dense size=xs")
                self.back.classes("field-back")
                self.back.props["title"] = t("form.reset_field")
                self.back.props["aria-label"] = f"{t('form.reset_field')}: {field.key}"
            if field.shape not in ("switch", "group"):
                self.control = self._control()
                self.control.props["for"] = self.id
                self.control.classes("field-control")
            help = " ".join(filter(None, (t.help(field.help), self._how())))
            self.control.props["aria-label"] = field.key
            if help:
                tag("div", help, "field-help", id=f"{self.id}-help")
                self.control.props["aria-describedby"] = f"{self.id}-help"
            self.problem = tag("div", css="field-problem", role="alert")
        self.mark()

    # -- drawing ---------------------------------------------------------------------------------------------------

    def _shown(self) -> Any:
        return form_values.shown(self.field, self.form.state)

    def _control(self) -> Any:
        f = self.field
        if f.shape in ("choice", "union"):
            return ui.select(self._options(), value=self._index(), on_change=self._changed).props(
                "outlined dense options-dense"
            )
        text = self._shown()
        if f.shape in ("lines", "yaml"):
            return ui.textarea(value=text, on_change=self._changed).props(
                "outlined dense autogrow debounce=250 spellcheck=false input-class=code-box"
            )
        made = ui.input(value=text, on_change=self._changed)
        made.props("outlined dense debounce=250 autocomplete=off spellcheck=false")
        if f.shape in ("integer", "number"):
            made.props["inputmode"] = "numeric" if f.shape == "integer" else "decimal"
        if f.nullable or not f.must_be_filled:
            made.props["placeholder"] = self.t("form.not_set")
        return made

    def _words(self) -> tuple[Any, ...]:
        return tuple(k.name for k in self.field.kinds) if self.field.shape == "union" else self.field.choices

    def _options(self) -> dict[int, str]:
        options = {i: form_values.as_text(word) for i, word in enumerate(self._words())}
        if self.field.nullable or not self.field.has_default:
            return {NOT_SET: self.t("form.not_set"), **options}
        return options

    def _index(self) -> int:
        value, words = self._shown(), self._words()
        return next((i for i, w in enumerate(words) if w == value and type(w) is type(value)), NOT_SET)

    def _facts(self) -> str:
        """The default and the range, in a few words."""
        f, t = self.field, self.t
        facts = []
        if f.has_default and f.default not in (None, "", [], {}) and f.shape not in ("yaml", "lines", "group"):
            facts.append(t("form.default", value=form_values.as_text(f.default)))
        low, high = f.low, f.high
        if low and high and not low.open and not high.open:
            facts.append(t("form.range", low=number_text(low.value), high=number_text(high.value)))
        else:
            if low:
                facts.append(t("form.range_low_open" if low.open else "form.range_low", low=number_text(low.value)))
            if high:
                facts.append(
                    t("form.range_high_open" if high.open else "form.range_high", high=number_text(high.value))
                )
        return " · ".join(facts)

    def _how(self) -> str:
        return {"lines": self.t("form.lines"), "yaml": self.t("form.yaml_box")}.get(self.field.shape, "")

    # -- living ----------------------------------------------------------------------------------------------------

    def _changed(self, event: Any) -> None:
        value = event.value
        if self.field.shape in ("choice", "union"):
            words = self._words()
            value = words[value] if isinstance(value, int) and 0 <= value < len(words) else None
        elif self.field.shape in ("switch", "group"):
            value = bool(value)
        else:
            value = str(value or "")
        self.form.change(self.field, value)

    def reset(self) -> None:
        """Back to the default."""
        value: Any = form_values.as_typed(self.field, self.field.default)
        self.form.change(self.field, value)
        self.control.value = self._index() if self.field.shape in ("choice", "union") else value

    def mark(self) -> None:
        """Show whether the value differs from the default, and what is wrong with it."""
        self.back.set_visibility(self.field.id in self.form.state)
        problem = self.form.problem_of(self.field)
        self.problem.set_text(self.t(problem.text, **problem.values) if problem else "")
        self.problem.set_visibility(problem is not None)
        self.box.classes(add="bad" if problem else "", remove="" if problem else "bad")
        self.control.props["aria-invalid"] = "true" if problem else "false"
