"""A real browser, and a live server for its pages: once open, once asking for keys."""

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from server_harness import LiveServer, make_settings
from server_model import make_model_folder

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
WAIT_MS = 600_000  # only a page that never comes to it fails
KEYED = {"api_keys": "acme:acme-key", "operator_keys": "operator-key"}


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("models") / "tiny-test"
    make_model_folder(folder)
    settings = make_settings(folder, tmp_path_factory.mktemp("data"))
    with LiveServer(settings, [{}, KEYED]) as server:
        yield server


@pytest.fixture(scope="session")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server of its own on whose Redis keys may be stored."""
    folder = tmp_path_factory.mktemp("models") / "tiny-test"
    make_model_folder(folder)
    with LiveServer(make_settings(folder, tmp_path_factory.mktemp("data")), [KEYED]) as server:
        yield server


@pytest.fixture(scope="module")  # while it runs, nobody else can run an event loop
def browser() -> Iterator["Browser"]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    playwright.expect.set_options(timeout=WAIT_MS)
    if not CHROMIUM:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        # The sandbox needs rights that root in a container does not have; the pages are our own.
        chromium = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=WAIT_MS
        )
        new_context = chromium.new_context

        def patient(**options: Any) -> "BrowserContext":
            made = new_context(**options)
            made.set_default_timeout(WAIT_MS)
            return made

        chromium.new_context = patient  # type: ignore[method-assign]
        yield chromium
        chromium.close()


@pytest.fixture
def context(browser: "Browser", live: LiveServer) -> Iterator["BrowserContext"]:
    with browser.new_context(base_url=live.urls[0]) as made:
        yield made
