"""What people meet when things go wrong: broken streams, a server that leaves and comes back,
tokens that end, completions that are gone, tabs that change the same session."""

from pathlib import Path
from urllib.parse import quote

import pytest
from cutting_proxy import CuttingProxy, cutting
from redis_process import free_port
from server_harness import LiveServer
from server_model import make_model_folder
from server_process import serving

pytest.importorskip("playwright.sync_api", reason="needs playwright")
from playground_acts import ANSWER, QUESTION, ask, correct
from playwright.sync_api import Browser, BrowserContext, Error, Page, expect


def opened(context: BrowserContext, path: str = "/") -> Page:
    page = context.new_page()
    page.goto(path)
    expect(page.locator("#model")).to_contain_text("tiny")
    return page


def test_a_connection_that_breaks_half_way(browser: Browser, live: LiveServer) -> None:
    with cutting(live.urls[0]) as proxy, browser.new_context(base_url=proxy.url) as context:
        page = opened(context)
        with proxy.held_at(b"}\n\n"):
            page.get_by_label("Your question").fill(QUESTION)
            page.keyboard.press("Enter")
            expect(page.locator(".writing .text")).not_to_be_empty()
        expect(page.get_by_role("alert")).to_contain_text("does not answer")
        expect(page.locator(".by")).to_contain_text("broke off")
        half = page.locator(".text").inner_text()
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("button", name="It should have said…")).to_be_visible()
        expect(page.get_by_role("alert")).to_be_hidden()
        assert page.locator(".text").inner_text().startswith(half)


def test_a_server_that_goes_away_under_the_operators_page(
    browser: Browser, live: LiveServer
) -> None:
    with cutting(live.urls[0]) as proxy, browser.new_context(base_url=proxy.url) as context:
        page = opened(context, "/admin")
        proxy.shut_down()
        expect(page.get_by_role("alert")).to_contain_text("does not answer")
        expect(page.locator("#model")).to_have_class("status off")
        expect(page.locator("#sessions-title")).to_be_visible()  # what was read stays
        proxy.shut = False
        expect(page.get_by_role("alert")).to_be_hidden()
        expect(page.locator("#model")).to_have_class("status on")


def while_api_is_away(proxy: CuttingProxy, page: Page, path: str) -> None:
    """Open a page of which everything but the server's answers arrives."""

    def shut(route: object) -> None:
        proxy.shut_down()
        route.continue_()  # type: ignore[attr-defined]

    for name in ("**/readyz", "**/admin/engine"):
        page.route(name, shut, times=1)
    page.goto(path)


@pytest.mark.parametrize("path", ["/", "/admin"])
def test_a_page_that_is_opened_as_the_server_goes(
    browser: Browser, live: LiveServer, path: str
) -> None:
    with cutting(live.urls[0]) as proxy, browser.new_context(base_url=proxy.url) as context:
        page = context.new_page()
        while_api_is_away(proxy, page, path)
        expect(page.locator("#model")).to_have_text("the server does not answer yet")
        expect(page.get_by_role("alert")).to_contain_text("does not answer")
        proxy.shut = False
        expect(page.locator("#model")).to_contain_text("tiny-test")  # nobody loaded it again
        expect(page.get_by_role("alert")).to_be_hidden()


def test_the_server_is_killed_and_started_again(browser: Browser, tmp_path: Path) -> None:
    model, data = tmp_path / "tiny", tmp_path / "data"
    make_model_folder(model)
    port = free_port()
    with browser.new_context() as context:
        with serving(model, data, port) as server:
            url = str(server.http.base_url)
            page = opened(context, url)
            ask(page)
            correct(page, ANSWER)
            expect(page.locator("#version")).to_have_text("version 1")
            server.process.kill()
            server.wait()
        page.get_by_label("Your question").fill(QUESTION)
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("does not answer")
        expect(page.locator("#model")).to_have_class("status off")
        newer = context.new_page()
        with pytest.raises(Error, match="ERR_CONNECTION_REFUSED"):
            newer.goto(url)
        with serving(model, data, port) as server:
            expect(page.locator("#model")).to_have_class("status on")
            page.get_by_role("button", name="Try again").click()
            expect(page.locator(".by").last).to_have_text("Learned, version 1")
            assert page.locator(".text").last.inner_text() == ANSWER
            newer.goto(url)
            expect(newer.locator("#version")).to_have_text("version 1")
            server.stop()


def test_a_token_that_expires_while_its_page_is_open(browser: Browser, live: LiveServer) -> None:
    with live.client(1, headers={"Authorization": "Bearer acme-key"}) as http:
        made = http.post("/sessions/web:short/tokens", json={"expires_in_s": 3}).json()
        whole = http.post("/sessions/web:short/tokens").json()
    with browser.new_context(base_url=live.urls[1]) as context:
        page = opened(context, f"/#token={made['token']}")
        page.wait_for_timeout(3_000)
        page.get_by_label("Questions, one a line").fill(QUESTION)
        page.get_by_label("The answer to all of them").fill(ANSWER)
        page.get_by_role("button", name="Teach", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("expired, or was revoked")
        assert page.get_by_label("The answer to all of them").input_value() == ANSWER
        page.goto(f"/#token={whole['token']}")
        expect(page.locator("#version")).to_have_text("untaught")
        expect(page.get_by_role("alert")).to_be_hidden()


def test_corrections_that_cannot_be_taken(context: BrowserContext, live: LiveServer) -> None:
    page = opened(context)
    ask(page)
    correct(page, "   \n ")
    expect(page.get_by_role("alert")).to_contain_text("Write what the answer should have been")
    field = page.locator(".turn").get_by_label("It should have said")
    huge = "never " * 3_000
    field.fill(huge)
    page.get_by_role("button", name="Teach this").click()
    expect(page.get_by_role("alert")).to_contain_text("correction")
    assert field.input_value() == huge  # nothing that was written is lost
    connection = live.runtime.store._room.connection
    kept = live.call(connection.read("KEYS", "*:completion:*"))  # as if their time had passed
    assert live.call(connection.write("DEL", *kept)) > 0
    field.fill(ANSWER)
    page.get_by_role("button", name="Teach this").click()
    expect(page.get_by_role("alert")).to_contain_text("completion")
    assert field.input_value() == ANSWER
    expect(page.locator("#version")).to_have_text("untaught")


def test_two_tabs_change_one_session(context: BrowserContext) -> None:
    first, second = opened(context), opened(context)
    for page, number in ((first, 1), (second, 2)):
        ask(page, f"{QUESTION} {number}")
    correct(first, ANSWER)
    expect(first.locator(".outcome")).to_have_text("Learned: version 1")  # else both are one lesson
    correct(second, "Ask the tall heron.")
    expect(second.locator(".outcome")).to_have_text("Learned: version 2")
    expect(second.locator("#items li")).to_have_count(2)
    first.bring_to_front()
    first.evaluate("dispatchEvent(new Event('focus'))")  # headless pages all have the focus
    expect(first.locator("#items li")).to_have_count(2)
    expect(first.locator("#version")).to_have_text("version 2")
    first.get_by_role("button", name="New session").click()
    expect(second.locator("#sessions li")).to_have_count(2)
    second.get_by_role("button", name="New session").click()
    expect(first.locator("#sessions li")).to_have_count(3)
    second.get_by_role("button", name="Session 1").click()
    second.get_by_role("button", name="Delete this session").click()
    second.get_by_role("dialog").get_by_role("button", name="Delete", exact=True).click()
    expect(first.locator("#sessions li")).to_have_count(2)


def test_names_and_comments_are_never_markup(context: BrowserContext, live: LiveServer) -> None:
    hostile = "<img src=x onerror=\"document.title='owned'\"><script>document.title='run'</script>"
    with live.client() as http:
        assert http.post("/sessions", json={"session_id": hostile}).status_code == 422
        given = http.post("/generate", json={"session_id": "op-comment", "prompt": "Hello?"})
        body = {"completion_id": given.json()["id"], "rating": -1, "comment": hostile}
        assert http.post("/feedback", json=body).status_code == 200
    page = context.new_page()
    page.goto("/admin#default/op-comment")
    expect(page.locator("#feedback li")).to_contain_text(hostile)
    page.get_by_role("link", name="← All sessions").click()
    page.get_by_label("Part of the id").fill(hostile[:100])
    expect(page.locator("#none")).to_be_visible()
    page.goto(f"/admin#default/{quote(hostile, safe='')}")
    expect(page.get_by_role("alert")).to_be_visible()
    page.evaluate(f"localStorage.setItem('innerloop.sessions', JSON.stringify([{hostile!r}]))")
    page.goto("/")
    expect(page.locator("#sessions li")).to_have_count(1)
    assert page.locator("#sessions img, #notice img").count() == 0
    assert page.title() == "innerloop playground"


def test_a_tenants_session_is_not_anothers(live: LiveServer) -> None:
    with live.client(1, headers={"Authorization": "Bearer acme-key"}) as http:
        token = http.post("/sessions/web:own/tokens").json()["token"]
    with live.client(1, headers={"Authorization": f"Bearer {token}"}) as http:
        refused = http.post("/generate", json={"session_id": "web:else", "prompt": "Hello?"})
        assert refused.status_code == 403
        assert "opens the session 'web:own' only" in refused.json()["detail"]
