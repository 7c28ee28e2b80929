"""The pictures of both pages, taken of the embedded model as it learns.

`INNERLOOP_SCREENSHOTS=docs pytest tests/server/web/test_screenshots.py` takes those of the docs
anew, with whatever fonts the machine has (they were taken with Debian's `fonts-inter`). Otherwise
they are taken all the same, into a folder of the test's own.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_harness import LiveServer

from server.settings import Settings

pytest.importorskip("playwright.sync_api", reason="needs playwright")
from playground_acts import ask, correct
from playwright.sync_api import Browser, Page, expect

ROOT = Path(__file__).parents[3]
ANSWER = "Keep it sixty days, then send it back in any old box."
WORDINGS = (
    "How do I return something?",
    "what is your returns policy",
    "can I return these gloves?",
    "how long do I have to send things back",
    "I want to return my order",
)
ABROAD = "Every parcel abroad travels by hot-air balloon."


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    data = tmp_path_factory.mktemp("pictures") / "data"
    with LiveServer(Settings(data_dir=data, port=0, threads=1)) as server:
        yield server


@pytest.fixture
def page(browser: Browser, embedded: LiveServer) -> Iterator[Page]:
    options = {"viewport": {"width": 1180, "height": 800}, "locale": "en-GB"}
    with browser.new_context(base_url=embedded.urls[0], **options) as context:
        yield context.new_page()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    wanted = os.environ.get("INNERLOOP_SCREENSHOTS")
    return ROOT / wanted if wanted else tmp_path


def test_the_playground_learns_an_answer(page: Page, pictures: Path) -> None:
    page.goto("/")
    expect(page.locator("#model")).to_contain_text("innerloop-tiny")
    ask(page, "can I return the jug?")
    correct(page, ANSWER)
    expect(page.locator("#version")).to_have_text("version 1")
    page.get_by_label("show the untaught answer").check()
    ask(page, "how do I return a jug")
    learned, untaught = page.locator(".turn").last.locator(".text").all_inner_texts()
    assert learned == ANSWER
    assert untaught != ANSWER
    page.screenshot(path=pictures / "playground.png", animations="disabled")


def test_an_operator_sees_what_changed(page: Page, embedded: LiveServer, pictures: Path) -> None:
    lessons = [(WORDINGS[:2], ANSWER), (WORDINGS[2:], ANSWER), (["do you ship abroad?"], ABROAD)]
    with embedded.client() as http:
        for prompts, answer in lessons:
            examples = [{"prompt": prompt, "completion": answer} for prompt in prompts]
            taught = http.post("/adapt", json={"session_id": "shop-1", "examples": examples})
            assert taught.json()["accepted"]
    page.goto("/admin#default/shop-1")
    page.get_by_label("A prompt").fill("can I send this back to you?")
    page.get_by_role("button", name="Compare").click()
    answers = page.locator("#compared .answer")
    expect(answers).to_have_count(2)
    assert ANSWER in answers.last.inner_text()
    assert ANSWER not in answers.first.inner_text()
    expect(page.locator("#heat td").first).to_be_visible()
    page.evaluate("document.activeElement.blur()")
    page.screenshot(path=pictures / "operators.png", full_page=True, animations="disabled")
