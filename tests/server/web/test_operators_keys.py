"""Keys and the audit log on the operators' page: make a key, see it once, revoke it, read of it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_harness import LiveServer, make_settings
from server_model import make_model_folder

pytest.importorskip("playwright.sync_api", reason="needs playwright")
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

KEY = re.compile(r"il_[0-9a-f]{12}_[\w-]{43}")
OPERATOR = {"Authorization": "Bearer operator-key"}


@pytest.fixture
def page(browser: Browser, keyed: LiveServer) -> Iterator[Page]:
    with browser.new_context(base_url=keyed.urls[0], bypass_csp=True) as context:
        yield unlocked(context.new_page(), "operator-key")


def unlocked(page: Page, key: str, view: str = "#keys") -> Page:
    page.goto(f"/admin{view}")
    page.get_by_label("Operator key").fill(key)
    page.get_by_role("button", name="Open").click()
    expect(page.locator("#views")).to_be_visible()
    return page


def make(page: Page, name: str, role: str = "client", tenant: str = "acme") -> str:
    page.get_by_label("Who has it").fill(name)
    page.get_by_label("Role").select_option(role)
    page.locator("#key-tenant").fill(tenant)
    page.get_by_role("button", name="Make the key").click()
    shown = page.get_by_label("The new key")
    expect(shown).to_be_focused()
    key = shown.input_value()
    assert KEY.fullmatch(key)
    return key


def test_a_key_is_made_shown_once_used_and_revoked(page: Page, keyed: LiveServer) -> None:
    key = make(page, "the shop's bot")
    row = page.locator("#key-list tbody tr").filter(has_text="the shop's bot")
    expect(row).to_contain_text(key[-4:])
    assert key not in page.locator("#key-list").inner_html()
    page.get_by_role("button", name="I have it").click()
    expect(page.locator("#made")).to_be_hidden()
    assert page.get_by_label("The new key").input_value() == ""
    with keyed.client(headers={"Authorization": f"Bearer {key}"}) as client:
        assert client.get("/v1/models").status_code == 200
        revoke = row.get_by_role("button", name="Revoke the key")
        revoke.click()
        page.keyboard.press("Escape")
        expect(revoke).to_be_focused()
        assert client.get("/v1/models").status_code == 200
        revoke.click()
        expect(page.get_by_role("dialog")).to_contain_text("shut out at once")
        page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        expect(row).to_have_count(0)
        assert client.get("/v1/models").status_code == 401
    page.get_by_role("link", name="Audit log").click()
    lines = page.locator("#audited tbody tr")
    expect(lines.nth(0)).to_contain_text("revoke key")
    expect(lines.nth(1)).to_contain_text("the shop's bot")
    expect(lines.nth(1)).to_contain_text("environment")


def test_a_key_is_not_shown_to_who_comes_back(page: Page) -> None:
    make(page, "left alone")
    page.get_by_role("link", name="Sessions").click()
    page.get_by_role("link", name="Keys").click()
    expect(page.locator("#made")).to_be_hidden()
    assert page.get_by_label("The new key").input_value() == ""


def test_what_is_missing_is_said(page: Page) -> None:
    page.get_by_role("button", name="Make the key").click()
    assert page.evaluate("document.querySelector('#key-tenant').validity.valueMissing")
    page.locator("#key-tenant").fill("no/slash")
    page.get_by_role("button", name="Make the key").click()
    assert page.evaluate("document.querySelector('#key-tenant').validity.patternMismatch")
    expect(page.locator("#made")).to_be_hidden()


def test_labels_are_never_markup(page: Page, keyed: LiveServer) -> None:
    hostile = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"
    make(page, hostile)
    expect(page.locator("#key-list tbody tr").first).to_contain_text(hostile)
    page.get_by_role("button", name="Revoke the key").first.click()
    expect(page.get_by_role("dialog")).to_contain_text(hostile)
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Audit log").click()
    expect(page.locator("#audited tbody tr").first).to_contain_text(hostile)
    assert page.locator("main img, main b, dialog img, dialog b").count() == 0
    assert page.title() == "innerloop operators"


def test_the_first_key_shuts_an_open_server(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny-test"
    make_model_folder(folder)
    with (
        LiveServer(make_settings(folder, tmp_path_factory.mktemp("data"))) as server,
        browser.new_context(base_url=server.urls[0]) as context,
    ):
        page = context.new_page()
        page.goto("/admin#keys")
        expect(page.locator("#open")).to_contain_text("for good")
        expect(page.get_by_label("Role")).to_be_disabled()
        page.get_by_role("button", name="Make the key").click()
        expect(page.get_by_label("The new key")).to_be_focused()
        key = page.get_by_label("The new key").input_value()
        with server.client() as http:
            assert http.get("/admin/keys").status_code == 401
        expect(page.locator("#open")).to_be_hidden()
        # The page goes on with it, and says why the last one stays.
        page.get_by_role("button", name="Revoke the key").click()
        page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        expect(page.get_by_role("alert")).to_contain_text("last key of an operator")
        page.reload()
        unlocked(page, key)
        expect(page.locator("#key-list tbody tr")).to_have_count(1)


def test_a_key_that_is_revoked_meanwhile_locks_the_page(
    browser: Browser, keyed: LiveServer
) -> None:
    with keyed.client(headers=OPERATOR) as http:
        made = http.post("/admin/keys", json={"role": "operator"}).json()
        with browser.new_context(base_url=keyed.urls[0]) as context:
            page = unlocked(context.new_page(), made["key"], "")
            assert http.delete(f"/admin/keys/{made['id']}").status_code == 204
            expect(page.get_by_label("Operator key")).to_be_visible()
            expect(page.get_by_role("alert")).to_contain_text("not any more")
            expect(page.locator("#page")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
def test_keys_and_audit_are_accessible(
    browser: Browser, keyed: LiveServer, scheme: str, width: int
) -> None:
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    # Axe is put into the page by a script, which our own policy forbids.
    with browser.new_context(base_url=keyed.urls[0], bypass_csp=True, **options) as context:
        page = context.new_page()
        page.goto("/admin#keys")
        expect(page.get_by_label("Operator key")).to_be_visible()
        views = [Axe().run(page)]
        unlocked(page, "operator-key")
        make(page, f"{scheme} {width}")
        views.append(Axe().run(page))
        page.get_by_role("button", name="Revoke the key").first.click()
        views.append(Axe().run(page))
        page.keyboard.press("Escape")
        page.get_by_role("link", name="Audit log").click()
        expect(page.locator("#audited tbody tr").first).to_be_visible()
        views.append(Axe().run(page))
        for found in views:
            assert found.violations_count == 0, found.generate_report()
        scrolled = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert scrolled <= 0, "wider than the window"
