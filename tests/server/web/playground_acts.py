"""What tests do on the playground often. Import it where Playwright is known to be there."""

from playwright.sync_api import Page, expect

QUESTION, ANSWER = "Where is my order?", "Follow the small finch."


def ask(page: Page, question: str = QUESTION) -> None:
    """Ask, and wait for the whole answer."""
    page.get_by_label("Your question").fill(question)
    page.keyboard.press("Enter")
    expect(page.locator(".turn").last.locator(".asked")).to_have_text(question)
    expect(page.locator(".writing")).to_have_count(0)


def correct(page: Page, text: str) -> None:
    """Say what the last answer should have been."""
    turn = page.locator(".turn").last
    turn.get_by_role("button", name="It should have said…").click()
    turn.get_by_label("It should have said").fill(text)
    turn.get_by_role("button", name="Teach this").click()
