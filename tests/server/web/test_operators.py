"""The operators' page in a real browser: find a session, read it, do what can be done about it."""

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_harness import LiveServer

pytest.importorskip("playwright.sync_api", reason="needs playwright")
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect

QUESTION, ANSWER = "Where is my order?", "Follow the small finch."


@pytest.fixture
def http(live: LiveServer) -> Iterator[httpx.Client]:
    with live.client() as client:
        yield client


def teach(http: httpx.Client, session: str, prompt: str = QUESTION, answer: str = ANSWER) -> None:
    example = {"prompt": prompt, "completion": answer}
    found = http.post("/adapt", json={"session_id": session, "examples": [example]})
    assert found.json()["accepted"], found.text


def opened(context: BrowserContext, session: str) -> Page:
    """The page of a session that is found by a part of its name."""
    page = context.new_page()
    page.goto("/admin")
    expect(page.locator("#model")).to_contain_text("tiny-test")
    page.get_by_label("Part of the id").fill(session[1:])
    expect(page.locator("#sessions tbody tr")).to_have_count(1)
    page.get_by_role("button", name=session, exact=True).click()
    expect(page.locator("#detail-title")).to_have_text(session)
    return page


def button(page: Page, name: str) -> Any:
    return page.locator("#detail").get_by_role("button", name=name, exact=True)


def test_read_a_session_and_go_back(context: BrowserContext, http: httpx.Client) -> None:
    teach(http, "op-read")
    teach(http, "op-read", "Hello?", "Good day.")
    page = opened(context, "op-read")
    expect(page.locator("#marks")).to_contain_text("version 2")
    expect(page.locator("#versions tbody tr")).to_have_count(2)
    expect(page.locator("#versions .current")).to_contain_text("in force")
    expect(page.locator("#curves figure")).to_have_count(3)
    expect(page.locator("#feedback li").first).to_contain_text("Good day.")
    expect(page.locator("#log li").last).to_contain_text("create")
    button(page, "Go back to version 1").click()
    expect(page.locator("#marks")).to_contain_text("version 1")
    expect(page.locator("#feedback li").first).to_contain_text("rolled back")
    assert http.get("/sessions/op-read").json()["adapter_version"] == 1
    # What others do to it shows without a click.
    teach(http, "op-read", "Bye?", "Farewell.")
    expect(page.locator("#marks")).to_contain_text("version 3")


def test_pin_forget_reset_and_delete(context: BrowserContext, http: httpx.Client) -> None:
    teach(http, "op-deeds")
    page = opened(context, "op-deeds")
    button(page, "Pin").click()
    expect(page.locator("#marks")).to_contain_text("pinned")
    button(page, "Unpin").click()
    expect(page.locator("#marks")).not_to_contain_text("pinned")
    button(page, "Forget item 1").click()
    expect(page.locator("#feedback li")).to_contain_text("forgotten")
    expect(page.locator("#marks")).to_contain_text("untaught")
    teach(http, "op-deeds")
    expect(page.locator("#marks")).to_contain_text("version 2")
    asked = page.get_by_role("dialog")
    button(page, "Reset…").click()
    expect(asked.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Escape")
    expect(asked).to_be_hidden()
    expect(button(page, "Reset…")).to_be_focused()
    assert http.get("/sessions/op-deeds").json()["adapter_version"] == 2
    button(page, "Reset…").click()
    asked.get_by_role("button", name="Reset", exact=True).click()
    expect(page.locator("#marks")).to_contain_text("untaught")
    button(page, "Delete…").click()
    asked.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#detail")).to_be_hidden()
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator("#none")).to_contain_text("No session fits")
    assert http.get("/sessions/op-deeds").status_code == 404


def test_norms_per_module(context: BrowserContext, http: httpx.Client) -> None:
    teach(http, "op-norms")
    teach(http, "op-norms", "Hello?", "Good day.")
    page = opened(context, "op-norms")
    cells = page.locator("#heat td")
    for version in (2, 1):
        page.locator("#norms").get_by_label("Version").select_option(str(version))
        expect(page.locator("#norms-sum")).to_contain_text(f"what version {version} adds")
        found = http.get(f"/admin/sessions/op-norms/versions/{version}/norms").json()["modules"]
        names = page.locator("#heat thead th").all_inner_texts()[1:]
        assert names == [row["module"].rpartition(".")[2] for row in found]  # of its one layer
        shown = [float(text) for text in cells.all_inner_texts()]
        assert shown == pytest.approx([row["norm"] for row in found], rel=0.01)
    button(page, "Reset…").click()
    page.get_by_role("dialog").get_by_role("button", name="Reset", exact=True).click()
    expect(page.locator("#marks")).to_contain_text("untaught")
    expect(page.locator("#norms")).to_be_visible()  # of versions that can be gone back to


def test_what_each_item_did(context: BrowserContext, http: httpx.Client) -> None:
    teach(http, "op-weigh")
    teach(http, "op-weigh", "Hello?", "Good day.")
    page = opened(context, "op-weigh")
    button(page, "What did each item do?").click()
    expect(page.locator("#weighed")).to_contain_text("without an item")
    found = http.get("/admin/sessions/op-weigh/versions/2/influence").json()["items"]
    for one in found:
        row = page.locator(f"#feedback li[data-item='{one['item']}']")
        expect(row.locator(".weight")).to_contain_text(f"{round(100 * one['share'])}%")
    # A version that is no longer in force takes its marks with it.
    teach(http, "op-weigh", "Bye?", "Farewell.")
    expect(page.locator("#marks")).to_contain_text("version 3")
    expect(page.locator("#feedback .weight")).to_have_count(0)


def test_compare_and_export(context: BrowserContext, http: httpx.Client) -> None:
    teach(http, "op-export")
    page = opened(context, "op-export")
    page.get_by_label("A prompt").fill(QUESTION)
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#compared section")).to_have_count(2)
    expect(page.locator("#compared .answer").last).to_contain_text(ANSWER)
    assert page.locator("#compared .token.up").count() > 0
    with page.expect_download() as download:
        button(page, "Export for PEFT").click()
    assert download.value.suggested_filename == "op-export-1.zip"
    names = zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())).namelist()
    assert any(name.endswith("adapter_model.safetensors") for name in names)


def test_the_list_sorts_filters_and_pages(context: BrowserContext, http: httpx.Client) -> None:
    for number in range(23):
        assert http.post("/sessions", json={"session_id": f"list-{number:02}"}).status_code == 201
    teach(http, "list-11")
    page = context.new_page()
    page.goto("/admin")
    page.get_by_label("Part of the id").fill("list-")
    expect(page.locator("#place")).to_have_text("1 to 20 of 23")
    rows = page.locator("#sessions tbody tr")
    page.get_by_role("button", name=re.compile("^Session")).click()
    expect(rows.first).to_contain_text("list-22")
    page.get_by_role("button", name=re.compile("^Session")).click()
    expect(rows.first).to_contain_text("list-00")
    expect(page.locator("th[aria-sort=ascending]")).to_have_text("Session ↑")
    page.get_by_role("button", name="Next").click()
    expect(rows).to_have_count(3)
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    page.locator("#taught").select_option("taught")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("list-11")


def test_a_server_with_keys_asks_for_the_operators(browser: Browser, live: LiveServer) -> None:
    with browser.new_context(base_url=live.urls[1]) as context:
        page = context.new_page()
        page.goto("/admin")
        for key in ("wrong", "acme-key"):
            page.get_by_label("Operator key").fill(key)
            page.get_by_role("button", name="Open").click()
            expect(page.get_by_role("alert")).to_contain_text("not an operator's key")
        page.get_by_label("Operator key").fill("operator-key")
        page.get_by_role("button", name="Open").click()
        expect(page.locator("#model")).to_contain_text("tiny-test")
        expect(page.get_by_label("Operator key")).to_be_hidden()
        stored = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
        assert "operator-key" not in stored


def test_what_people_wrote_is_never_markup(context: BrowserContext, http: httpx.Client) -> None:
    hostile = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"
    teach(http, "op-hostile", hostile, f"{hostile}!")
    page = opened(context, "op-hostile")
    expect(page.locator("#feedback .question")).to_have_text(hostile)
    page.get_by_label("A prompt").fill(hostile)
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#compared section")).to_have_count(2)
    assert page.locator("#detail img, #detail b").count() == 0
    assert page.title() == "innerloop operators"


def test_an_address_that_somebody_typed(context: BrowserContext) -> None:
    page = context.new_page()
    for place in ("%zz/%zz", "a/b/c", "nothing"):
        page.goto(f"/admin#{place}")
        expect(page.locator("#sessions-title")).to_be_visible()
    page.goto("/admin#default/nobody")
    expect(page.get_by_role("alert")).to_contain_text("nobody")
    expect(page.locator("#sessions-title")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
def test_it_is_accessible(
    browser: Browser, live: LiveServer, http: httpx.Client, scheme: str, width: int
) -> None:
    session = f"op-{scheme}-{width}"
    teach(http, session)
    teach(http, session, "Hello?", "Good day.")
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    # Axe is put into the page by a script, which our own policy forbids.
    with browser.new_context(base_url=live.urls[0], bypass_csp=True, **options) as context:
        page = opened(context, session)
        page.get_by_label("A prompt").fill(QUESTION)
        page.get_by_role("button", name="Compare").click()
        expect(page.locator("#compared section")).to_have_count(2)
        expect(page.locator("#heat td").first).to_be_visible()
        button(page, "What did each item do?").click()
        expect(page.locator("#feedback .weight")).to_have_count(2)
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        scrolled = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert scrolled <= 0, "wider than the window"
