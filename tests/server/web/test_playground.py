"""The playground in a real browser: teach, ask again, forget, and what happens when things fail."""

import re
from pathlib import Path

import pytest
from server_harness import LiveServer

pytest.importorskip("playwright.sync_api", reason="needs playwright")
from axe_playwright_python.sync_playwright import Axe
from playground_acts import ANSWER, QUESTION, ask, correct
from playwright.sync_api import Browser, BrowserContext, Page, expect


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return opened(context)


def opened(context: BrowserContext) -> Page:
    page = context.new_page()
    page.goto("/")
    expect(page.locator("#model")).to_contain_text("tiny-test")
    return page


def answers(page: Page) -> list[str]:
    return page.locator(".turn").last.locator(".text").all_inner_texts()


def test_teach_ask_again_and_forget(page: Page) -> None:
    expect(page.locator("#version")).to_have_text("untaught")
    ask(page, QUESTION)
    before = answers(page)
    assert before != [ANSWER]
    correct(page, ANSWER)
    expect(page.locator(".outcome")).to_have_text("Learned: version 1")
    expect(page.locator("#version")).to_have_text("version 1")
    page.get_by_role("button", name="Ask again").click()
    assert page.get_by_label("Your question").input_value() == QUESTION
    page.get_by_label("show the untaught answer").check()
    ask(page, QUESTION)
    assert answers(page) == [ANSWER, *before]
    expect(page.locator(".turn").last.locator(".by").first).to_have_text("Learned, version 1")
    page.get_by_role("button", name=f"Forget: {QUESTION}").click()
    expect(page.locator("#version")).to_have_text("untaught")
    expect(page.locator("#items li")).to_have_count(0)
    page.get_by_label("show the untaught answer").uncheck()
    ask(page, QUESTION)
    assert answers(page) == before


def test_thumbs(page: Page) -> None:
    ask(page, QUESTION)
    up = page.get_by_role("button", name="Good answer")
    down = page.get_by_role("button", name="Bad answer")
    down.click()
    expect(page.locator(".outcome")).to_have_text("Learned: version 1")
    expect(page.locator("#items li")).to_contain_text("Bad answer")
    expect(down).to_have_attribute("aria-pressed", "true")
    up.click()
    expect(page.locator(".outcome")).to_have_text("Learned: version 2")
    expect(up).to_have_attribute("aria-pressed", "true")
    expect(down).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#items li")).to_have_count(2)
    expect(page.locator("#items .off")).to_contain_text("Bad answer")
    correct(page, ANSWER)
    expect(page.locator("#version")).to_have_text("version 3")
    ask(page, QUESTION)
    assert answers(page) == [ANSWER]


def test_several_wordings_at_once_and_sessions_apart(page: Page) -> None:
    page.get_by_label("Questions, one a line").fill(f"{QUESTION}\n\n How can I track it? \n")
    page.get_by_label("The answer to all of them").fill(ANSWER)
    page.get_by_role("button", name="Teach", exact=True).click()
    expect(page.locator("#items li")).to_have_count(2)
    ask(page, QUESTION)
    assert answers(page) == [ANSWER]
    page.get_by_role("button", name="New session").click()
    expect(page.locator("#version")).to_have_text("untaught")
    expect(page.locator(".turn")).to_have_count(0)
    ask(page, QUESTION)
    assert answers(page) != [ANSWER]
    page.get_by_role("button", name="Session 1").click()
    expect(page.locator("#version")).to_have_text("version 1")
    assert answers(page) == [ANSWER]
    page.get_by_role("button", name="Delete this session").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#sessions li")).to_have_count(1)
    expect(page.locator("#version")).to_have_text("untaught")


def test_sessions_are_there_after_a_reload_and_in_a_second_tab(context: BrowserContext) -> None:
    first = opened(context)
    ask(first, QUESTION)
    correct(first, ANSWER)
    expect(first.locator("#version")).to_have_text("version 1")
    first.reload()
    expect(first.locator("#version")).to_have_text("version 1")
    second = opened(context)
    expect(second.locator("#version")).to_have_text("version 1")
    second.get_by_role("button", name="New session").click()
    expect(first.locator("#sessions li")).to_have_count(2)
    ask(second, QUESTION)
    assert answers(second) != [ANSWER]
    ask(first, QUESTION)
    assert answers(first) == [ANSWER]


def test_what_people_write_is_never_markup(page: Page) -> None:
    hostile = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"
    ask(page, hostile)
    correct(page, f"{hostile}!")
    expect(page.locator("#items li")).to_have_count(1)
    ask(page, hostile)
    assert page.locator(".asked").last.inner_text() == hostile
    assert page.locator("#chat img, #chat b, #items img, #items b").count() == 0
    assert page.title() == "innerloop playground"


def test_the_server_goes_away_and_comes_back(context: BrowserContext, page: Page) -> None:
    context.set_offline(True)
    page.get_by_label("Your question").fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("button", name="It should have said…")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_hidden()
    assert len(answers(page)[0]) > 0


def test_an_answer_that_breaks_off_says_so(page: Page) -> None:
    half = 'event: delta\ndata: {"text": "Half an ans"}\n\n'
    headers = {"content-type": "text/event-stream"}
    page.route("**/generate", lambda route: route.fulfill(body=half, headers=headers))
    ask(page, QUESTION)
    assert answers(page) == ["Half an ans"]
    expect(page.get_by_role("alert")).to_contain_text("broke off")
    page.unroute("**/generate")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("button", name="It should have said…")).to_be_visible()


def test_a_refused_request_shows_the_servers_words(page: Page) -> None:
    page.get_by_label("Your question").fill("word " * 3000)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text(re.compile("prompt.*tokens"))


def test_a_server_with_keys_is_explained(browser: Browser, live: LiveServer) -> None:
    with browser.new_context(base_url=live.urls[1]) as context:
        page = opened(context)
        expect(page.get_by_role("alert")).to_contain_text("API key")
        expect(page.get_by_role("alert")).to_contain_text("POST /sessions/{id}/tokens")


def test_a_page_with_a_token_is_its_sessions(browser: Browser, live: LiveServer) -> None:
    def linked(session: str) -> str:
        with live.client(1, headers={"Authorization": "Bearer acme-key"}) as http:
            return "/#token=" + str(http.post(f"/sessions/{session}/tokens").json()["token"])

    with browser.new_context(base_url=live.urls[1]) as context:
        page = context.new_page()
        page.goto(linked("web:given"))
        expect(page.locator("#model")).to_contain_text("tiny-test")
        assert "token" not in page.url
        expect(page.get_by_role("button", name="New session")).to_be_hidden()
        expect(page.get_by_role("button", name="Session 1")).to_have_attribute("title", "web:given")
        ask(page, QUESTION)
        correct(page, ANSWER)
        expect(page.locator("#version")).to_have_text("version 1")
        page.reload()
        expect(page.locator("#version")).to_have_text("version 1")
        assert page.evaluate("localStorage.length") == 0
        page.goto(linked("web:other"))  # the same tab: only what is behind # changes
        expect(page.get_by_role("button", name="Session 1")).to_have_attribute("title", "web:other")
        expect(page.locator("#version")).to_have_text("untaught")
        with live.client(1, headers={"Authorization": "Bearer acme-key"}) as http:
            http.post("/sessions", json={"session_id": "web:other"})
            assert http.delete("/sessions/web:other").status_code == 204  # and its tokens
        page.get_by_label("Your question").fill(QUESTION)
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("expired, or was revoked")
        page.goto("/#token=ilt_cut")
        expect(page.get_by_role("alert")).to_contain_text("cut or mistyped")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
def test_it_is_accessible(
    browser: Browser, live: LiveServer, scheme: str, width: int, tmp_path: Path
) -> None:
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    # Axe is put into the page by a script, which our own policy forbids.
    with browser.new_context(base_url=live.urls[0], bypass_csp=True, **options) as context:
        page = opened(context)
        ask(page, QUESTION)
        correct(page, ANSWER)
        expect(page.locator("#items li")).to_have_count(1)
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        scrolled = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert scrolled <= 0, "wider than the window"


def test_pages_come_with_their_guards(live: LiveServer) -> None:
    with live.client() as http:
        for path in ("/", "/admin"):
            page = http.get(path)
            assert page.headers["content-type"].startswith("text/html")
            assert "default-src 'self'" in page.headers["content-security-policy"]
            assert page.headers["x-content-type-options"] == "nosniff"
            for name in re.findall(r'"(/web/[^"]+)"', page.text):
                found = http.get(name)
                assert found.status_code == 200
                assert found.headers["content-security-policy"]
        for name in ("/web/nothing.js", "/web/..%2fapp.py", "/web/%2e%2e/app.py"):
            assert http.get(name).status_code == 404


def test_a_page_loaded_anew_can_still_rate_what_was_said(page: Page) -> None:
    ask(page, QUESTION)
    before = answers(page)
    page.reload()
    expect(page.locator(".turn .asked")).to_have_text(QUESTION)
    assert answers(page) == before
    correct(page, ANSWER)
    expect(page.locator("#version")).to_have_text("version 1")
    page.get_by_role("button", name="New session").click()
    expect(page.locator(".turn")).to_have_count(0)
    page.get_by_role("button", name="Delete this session").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator(".turn")).to_have_count(1)
    assert page.evaluate("Object.keys(sessionStorage).length") == 1, "a deleted session's is gone"


def test_another_answer_after_thumbs_down(page: Page) -> None:
    ask(page, QUESTION)
    page.get_by_role("button", name="Bad answer").click()
    page.get_by_role("button", name="Another answer").click()
    expect(page.locator(".by")).to_have_text("Learned, version 1")
    expect(page.get_by_role("button", name="Bad answer")).to_have_attribute("aria-pressed", "false")
    expect(page.locator(".turn")).to_have_count(1)


def test_more_wordings_than_one_call_takes(page: Page) -> None:
    wordings = "\n".join(f"Where is order {number}?" for number in range(70))
    page.get_by_label("Questions, one a line").fill(wordings)
    page.get_by_label("The answer to all of them").fill(ANSWER)
    page.get_by_role("button", name="Teach", exact=True).click()
    expect(page.locator("#items li")).to_have_count(70, timeout=60_000)


def test_a_question_that_is_refused_can_be_changed(page: Page) -> None:
    page.get_by_label("Your question").fill("What is <|end|>?")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Change the question").click()
    assert page.get_by_label("Your question").input_value() == "What is <|end|>?"
