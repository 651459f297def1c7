"""The fields of the data page: sets, model, longest conversation, further settings; and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui

from tunesmith.web import data_request
from tunesmith.web.data_request import Request
from tunesmith.web.language import Texts
from tunesmith.web.shell import tag

FIELDS = ("sets", "model", "length", "settings")
EXAMPLES = {
    "sets": "{set: my.jsonl, columns: {prompt: question, response: answer}}\n{set: hf:owner/name, subset: main, split: test}",
    "settings": "data.learn=last_answer\ndata.registry=my/dataset_info.json\nmodel.template=chatml",
}
"""Lines that a field takes."""


class DataFields:
    """Draws the fields where it is made, filled in with ``request``. ``changed()`` is called after each change, ``enter`` for the
    Enter key."""

    def __init__(self, request: Request, t: Texts, changed: Callable[[], None], enter: Callable[[], Any]) -> None:
        self.t, self.changed, self.enter = t, changed, enter
        self.inputs: dict[str, Any] = {}
        self.problems: dict[str, Any] = {}
        self._fields(request)

    def _fields(self, request: Request) -> None:
        with ui.element("div").classes("data-fields"):
            sets = ui.textarea(value="\n".join(request.sets), placeholder="lantern_bay")
            sets.props("outlined dense autogrow spellcheck=false input-class=code-box debounce=150")
            self._field("sets", sets)
            model = ui.input(value=request.model, placeholder="demo")
            model.props("outlined dense autocomplete=off spellcheck=false debounce=150")
            self._field("model", model)
            length = ui.input(
                value="" if request.length is None else str(request.length), placeholder=self.t("form.not_set")
            )
            length.props("outlined dense autocomplete=off inputmode=numeric debounce=150")
            self._field("length", length)
            settings = ui.textarea(value="\n".join(request.settings), placeholder="data.learn=last_answer")
            settings.props("outlined dense autogrow spellcheck=false input-class=code-box debounce=150")
            self._field("settings", settings)

    def _field(self, name: str, control: Any) -> None:
        """Label, control, help and problem, in that order."""
        t, id = self.t, f"field-data-{name}"
        with ui.element("div").classes(f"field field-data-{name}"):
            tag("label", t(f"sets.field_{name}"), "field-label", for_=id)
            control.props["for"] = id
            control.props["aria-describedby"] = f"{id}-help"
            control.move(ui.context.slot.parent)
            with tag("div", t(f"sets.help_{name}"), "field-help", id=f"{id}-help"):
                if name in EXAMPLES:
                    tag("code", EXAMPLES[name], "field-example")
            self.problems[name] = tag("div", css="field-problem", role="alert")
        control.on_value_change(self.changed)
        if name in ("model", "length"):
            control.on("keydown.enter", self.enter)
        self.inputs[name] = control

    def read(self) -> tuple[Request, dict[str, str]]:
        """What is filled in, and by field the key of a text that says what is wrong with it."""
        return data_request.of_fields(*(str(self.inputs[name].value or "") for name in FIELDS))

    def mark(self, problems: Mapping[str, str]) -> None:
        """Say what is wrong, and put the cursor into the first field with something wrong."""
        for name in FIELDS:
            self._mark(name, problems.get(name, ""))
        if problems:
            first = next(name for name in FIELDS if name in problems)
            ui.run_javascript(f"document.getElementById('field-data-{first}')?.focus()")

    def mark_mended(self, problems: Mapping[str, str]) -> None:
        """A mended field is no longer marked; one that is being typed is not yet."""
        for name in FIELDS:
            if name not in problems:
                self._mark(name, "")

    def _mark(self, name: str, key: str) -> None:
        self.problems[name].set_text(self.t(key) if key else "")
        self.problems[name].set_visibility(bool(key))
        self.inputs[name].props["aria-invalid"] = "true" if key else "false"
