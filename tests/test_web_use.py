"""The page where a run is exported, deployed and compared: real commands, started from forms drawn from their own schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tunesmith.cli import app
from tunesmith.config.schema import schema
from tunesmith.runs import work
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs.requests import REQUESTS
from tunesmith.web.form_model import leaves, read_form
from tunesmith.web.form_values import read_values
from tunesmith.web.use_command import arguments, shown
from tunesmith.web.use_page import COMMANDS
from web_browser import Tab, browser, tab  # noqa: F401
from web_server import Server

OWN = {"html", "out", "help", "model", "models", "settings", "type", "prompts", "to"}
OF_TARGETS = {"level"}
"""Parameters of the commands that the page gives itself, or that mean files of the person's disk; and options of export that are
also settings of a target."""


def form_of(command: str) -> Any:
    return read_form(schema(REQUESTS[command]))


def test_a_form_is_written_as_its_command() -> None:
    fields = form_of("export")
    state = {"to": "hf", "to[hf].max_shard_size": "2.5", "base": "hf:org/name with space"}
    words = arguments("export", ["run:x"], fields, read_values(fields, state).config)
    assert words == ["export", "run:x", "--to", "hf", "--base", "hf:org/name with space", "max_shard_size=2.5"]
    assert shown(words) == "tunesmith export run:x --to hf --base 'hf:org/name with space' max_shard_size=2.5"
    plain = arguments("export", ["run:x"], fields, read_values(fields, {}).config)
    assert plain == ["export", "run:x", "--to", "gguf"], "what is chosen by default is written as well"
    fields = form_of("compare")
    config = read_values(fields, {"prompt": "one\n-two", "limit": "3"}).config
    words = arguments("compare", ["run:x@base", "run:x"], fields, config)
    assert words == ["compare", "run:x@base", "run:x", "--prompt", "one", "--prompt=-two", "--limit", "3"]


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_field_has_a_name_in_words(command: str) -> None:
    """In both languages, and none twice in one form: a person reads words where a terminal has options."""
    for top in form_of(command):
        for field in leaves((top,)):
            label = field.label or {}
            assert label.get("en") and not label["en"][0].islower() and "_" not in label["en"], field.key
            assert any("\u4e00" <= c <= "\u9fff" for c in label.get("zh", "")), field.key
    labels = [(field.label or {})["en"] for field in form_of(command)]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_forms_offer_what_the_command_has(command: str) -> None:
    """Every field is an option of the real command, every option of the command a field."""
    options = {p.name: p for p in typer.main.get_command(app).commands[command].params}  # type: ignore[attr-defined]
    known = {"type" if name == "type_" else name for name in options}
    asked = set(REQUESTS[command].model_fields) - {"to"}
    assert asked <= known, f"no such option: {asked - known}"
    known -= OF_TARGETS if command == "export" else set()
    assert known - OWN <= asked, f"not on the page: {known - OWN - asked}"
    for name in asked:
        assert f"--{name.rstrip('_').replace('_', '-')}" in options[name].opts, name
    help = CliRunner().invoke(app, [command, "--help"])
    assert help.exit_code == 0


def test_every_setting_has_help_in_both_languages() -> None:
    for command in COMMANDS:
        for leaf in leaves(form_of(command)):
            assert leaf.help["en"] and leaf.help["zh"] and leaf.help["en"] != leaf.help["zh"], leaf.id


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "home") as server:
        yield server


@pytest.mark.page
def test_what_is_started_is_told_and_outlives_the_page(tab: Tab, server: Server, tmp_path: Path) -> None:  # noqa: F811
    """An export of a run without a checkpoint: the real command refuses it, and the page says why."""
    config = f"model: {{ref: {json.dumps(str(tmp_path))}}}\ndata: {{train: [lantern_bay]}}\n"
    run = RunFolder.create(config, "plain", server.home / "runs")
    page = tab.page
    page.goto(f"{server.address}run/{run.id}/use")
    page.get_by_role("heading", name="Use this model").wait_for()
    command = page.locator("pre.yaml")
    command.get_by_text(f"tunesmith export run:{run.id} --to gguf").wait_for()
    page.get_by_role("button", name="Export").click()
    page.get_by_text("It failed").wait_for()
    (done,) = work.listed(run)
    assert done.code == 2 and done.arguments == ("export", f"run:{run.id}", "--to", "gguf")
    message = done.said.partition("error: ")[2].splitlines()[0]
    page.get_by_text(message, exact=False).first.wait_for()
    tab.context.add_cookies([{"name": "tunesmith_language", "value": "zh", "url": server.address}])
    page.goto(f"{server.address}run/{run.id}/use?do=deploy")
    page.get_by_role("heading", name="使用这个模型").wait_for()
    page.get_by_text("任务失败了").first.wait_for()
    assert tab.errors == [] and not tab.outside()


@pytest.mark.page
def test_a_report_is_shown_without_its_scripts(tab: Tab, server: Server) -> None:  # noqa: F811
    run = RunFolder.create("model: demo\n", "reported", server.home / "runs")
    run.artifacts.mkdir()
    script = "<script>document.title = 'ran'; fetch('/')</script><img src=x onerror=\"document.title='ran'\">"
    (run.artifacts / "report.html").write_text(f"<title>still</title><h1>Report</h1>{script}", encoding="utf-8")
    tab.page.goto(f"{server.address}run/{run.id}/files/artifacts/report.html")
    tab.page.get_by_role("heading", name="Report").wait_for()
    assert tab.page.title() == "still"
