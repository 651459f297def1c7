"""The page in a real Chromium: from an empty list to a live run, and on after the page's process is killed."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model_fixtures import make_model
from tunesmith.runs.folder import RunFolder, list_runs
from tunesmith.runs.process import stop
from tunesmith.web.commands import COMMAND
from web_browser import Tab
from web_server import Server

pytestmark = pytest.mark.page


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts pages over one home; at the end they and the runs that still go on are ended, also after a failure."""
    servers: list[Server] = []

    def start(port: int = 0, **options: Any) -> Server:
        servers.append(Server(tmp_path / "home", port, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
    for run in list_runs(tmp_path / "home" / "runs"):
        if run.status().active:
            stop(run, patience=5)


def wait_until(holds: Callable[[], bool], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.05)


def points(page: Any) -> int:
    """How many points of train loss the chart on the page has now."""
    return int(
        page.evaluate(
            "() => { const e = document.querySelector('.nicegui-echart');"
            " const c = e && window.getElement(e.id.slice(1))?.chart;"
            " return c ? (c.getOption().series[0]?.data || []).length : 0 }"
        )
    )


def only_run(server: Server) -> RunFolder:
    (run,) = list_runs(server.home / "runs")
    return run


def test_from_an_empty_list_to_a_run_that_outlives_the_page(tab: Tab, start: Callable[..., Server]) -> None:
    server = start()
    page = tab.page
    page.goto(server.address)
    page.get_by_role("heading", name="No runs yet").wait_for()
    page.get_by_role("link", name="Set up the first run").click()

    tab.field("model.ref").fill("slow")
    tab.field("train.steps").fill("300")
    tab.field("output.name").fill("first")
    page.get_by_text("name: first").wait_for()
    page.reload()
    page.wait_for_function("document.querySelector('[id=\"field-train.steps\"]')?.value === '300'")
    page.get_by_text("name: first").wait_for()
    page.get_by_role("button", name="Start").dblclick()
    page.get_by_text("Starting …").wait_for()
    page.wait_for_url("**/run/*-first")
    run = only_run(server)

    page.get_by_role("status").get_by_text("running").wait_for()
    wait_until(lambda: points(page) >= 3)
    assert "Step" in page.locator(".progress-text").inner_text()
    assert page.locator("dd").nth(0).inner_text() != "–"
    page.locator(".log", has_text="step 3/300").wait_for()

    server.kill()
    step = run.status().step
    wait_until(lambda: run.status().step > step + 3)
    assert run.status().state == "running", "the run goes on without the page"

    with start(server.port) as again:
        page.reload()
        page.get_by_role("status").get_by_text("running").wait_for()
        seen = points(page)
        wait_until(lambda: points(page) > max(seen, step))

        page.get_by_role("button", name="Stop").click()
        page.get_by_role("status").get_by_text(re.compile("stopped|interrupted")).wait_for()
        page.goto(again.address)
        page.get_by_role("link", name=run.id).wait_for()
        page.get_by_role("button", name=f"Delete {run.id}").click()
        page.get_by_role("button", name="Delete", exact=True).last.click()
        page.get_by_role("heading", name="No runs yet").wait_for()
    assert not run.path.exists()
    assert tab.outside() == set()
    assert tab.errors == []


def test_an_interrupted_run_says_so_and_is_resumed(tab: Tab, server: Server) -> None:
    run = RunFolder.create("model: {ref: demo}\ntrain: {steps: 40, pause: 0.01}\n", "torn", server.home / "runs")
    for step in range(1, 21):
        run.append_metrics({"kind": "step", "step": step, "loss": 3 - step / 20, "lr": 1e-4})
    run.update_status(state="running", what="training", step=20, total_steps=40, pid=2**22 - 1, pid_started=1e9)
    page = tab.page
    page.goto(f"{server.address}run/{run.id}")
    page.get_by_text("This run was interrupted").wait_for()
    wait_until(lambda: points(page) == 20)
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("status").get_by_text("finished").wait_for()
    wait_until(lambda: points(page) == 40)
    assert tab.errors == []


def test_errors_are_shown_whole_beside_the_form_and_mark_their_field(tab: Tab, server: Server) -> None:
    page = tab.page
    before = [run.id for run in list_runs(server.home / "runs")]
    page.goto(f"{server.address}new")
    page.get_by_role("button", name="Start").click()
    page.get_by_text("Please fill this in.").wait_for()
    tab.field("model.ref").fill("missing")
    tab.field("train.lr").fill("5")
    page.get_by_text("This has to be 1 or less.").wait_for()
    tab.field("train.lr").fill("1e-3")
    page.get_by_text("lr: 0.001").wait_for()
    page.get_by_role("button", name="Start").click()
    error = page.locator(".start-error")
    error.get_by_text("'model.ref': there is no model 'missing'").wait_for()
    error.get_by_text("try demo, or give the path of a model folder").wait_for()
    assert tab.field("model.ref").get_attribute("aria-invalid") == "true"
    assert [run.id for run in list_runs(server.home / "runs")] == before
    assert tab.errors == []


def test_unions_advanced_settings_and_copying(tab: Tab, server: Server) -> None:
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = tab.page
    page.goto(f"{server.address}new")
    tab.field("model.ref").fill("demo")
    assert tab.field("train.pause").count() == 0, "advanced fields are not drawn before they are asked for"
    tab.field("method").click()
    page.get_by_role("option", name="full").click()
    page.get_by_text("method: full").wait_for()
    assert tab.field("method[lora].rank").count() == 0
    page.get_by_label("Find a setting").fill("seconds per step")
    tab.field("train.pause").fill("0.5")
    page.get_by_text("pause: 0.5").wait_for()
    page.get_by_text("1 changed").wait_for()
    page.get_by_role("button", name="Copy").click()
    page.get_by_text("Copied").wait_for()
    assert (
        page.evaluate("navigator.clipboard.readText()") == "model:\n  ref: demo\nmethod: full\ntrain:\n  pause: 0.5\n"
    )
    assert tab.errors == []


def test_chinese_and_english(browser: Any, server: Server) -> None:
    tab = Tab(browser, locale="zh-CN", viewport={"width": 390, "height": 800})
    page = tab.page
    page.goto(server.address)
    page.get_by_role("heading", name="运行").wait_for()
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    page.goto(f"{server.address}new")
    page.get_by_text("适配器的秩。").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
        "no sideways scrolling on a phone"
    )
    page.get_by_role("button", name="English").click()
    page.get_by_text("Rank of the adapters.").wait_for()
    page.goto(server.address)
    page.get_by_role("heading", name="Runs").wait_for()
    assert tab.outside() == set() and tab.errors == []
    tab.context.close()


@pytest.mark.slow
def test_a_real_training_started_here_goes_on_without_the_page(
    tab: Tab, start: Callable[..., Server], tmp_path: Path, smol: Path
) -> None:
    tiny = make_model(smol, tmp_path / "tiny", "llama")
    server = start(command=COMMAND)
    page = tab.page
    page.goto(f"{server.address}new")
    tab.field("model.ref").fill(str(tiny))
    tab.field("data.train").fill("lantern_bay")
    tab.field("data.max_length").fill("200")
    tab.field("train.batch").fill("2")
    tab.field("output.name").fill("real")
    page.get_by_label("Find a setting").fill("max_steps")
    tab.field("train.max_steps").fill("200")
    page.get_by_text("max_steps: 200").wait_for()
    page.get_by_role("button", name="Start").click()
    page.wait_for_url("**/run/*-real", timeout=60_000)
    run = only_run(server)
    wait_until(lambda: points(page) >= 3, 90)
    server.kill()
    step = run.status().step
    wait_until(lambda: run.status().step > step, 60)
    with start(server.port, command=COMMAND):
        page.reload()
        page.get_by_role("status").get_by_text("running").wait_for()
        wait_until(lambda: points(page) > step, 60)
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("status").get_by_text("stopped").wait_for(timeout=60_000)
        page.get_by_text("Resume goes on from the newest checkpoint.").wait_for()
        page.get_by_role("button", name="Resume").click()
        wait_until(lambda: run.status().state == "running", 60)
        wait_until(lambda: run.status().state == "finished", 120)
        page.get_by_role("status").get_by_text("finished").wait_for()
        page.locator(".file img").first.wait_for()
    assert tab.outside() == set() and tab.errors == []


def test_every_control_has_a_name(tab: Tab, server: Server) -> None:
    page = tab.page
    page.goto(f"{server.address}new")
    tab.field("model.ref").wait_for()
    for head in page.locator(".fold .q-item").all():
        head.click()
    page.wait_for_timeout(300)
    nameless = page.evaluate(
        "() => [...document.querySelectorAll('input, textarea, button, [role=switch], [role=combobox]')]"
        ".filter(e => e.offsetParent && !(e.getAttribute('aria-label') || e.innerText?.trim() || e.labels?.length))"
        ".map(e => e.outerHTML.slice(0, 160))"
    )
    assert nameless == [], json.dumps(nameless, indent=1)
