"""A real Chromium for tests of the page: fixtures to import, and what a tab remembers."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = os.environ.get("TUNESMITH_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: install the package `chromium`, or name it in TUNESMITH_TEST_CHROMIUM")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Tab:
    """A browser context with one page; remembers every address asked for and every error in the console."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.context = browser.new_context(**{"locale": "en-US", **options})
        self.asked: set[str] = set()
        self.errors: list[str] = []
        self.context.on("request", lambda r: self.asked.add(r.url))
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("websocket", lambda w: self.asked.add(w.url))

    def field(self, key: str) -> Any:
        return self.page.locator(f"[id='field-{key}']")

    def outside(self) -> set[str]:
        """Hosts other than this machine that anything was asked of."""
        hosts = {m.group(1) for url in self.asked if (m := re.match(r"\w+://([^/:]+)", url))}
        return hosts - {"127.0.0.1"}


@pytest.fixture
def tab(browser: Any) -> Iterator[Tab]:
    tab = Tab(browser)
    yield tab
    tab.context.close()
