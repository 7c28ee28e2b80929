"""How fast the playground is in a browser: its first paint, and the first character of an answer.

`python -m benchmarks.pages` starts `innerloop serve` with the embedded model, opens the page in
Chromium with an empty cache, asks, corrects and asks again, `--rounds` times, and prints a table.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.machine import describe

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

READY = re.compile(r"innerloop is ready at (\S+)")
QUESTION, OTHER_WORDS = "can I return the jug?", "how do I return a jug"
ANSWER = "Keep it sixty days, then send it back in any old box."
PAINT = """() => {
  const all = performance.getEntriesByType("paint");
  return all.find((one) => one.name === "first-contentful-paint")?.startTime ?? null;
}"""
LOADED = """() => {
  const all = ["navigation", "resource"].flatMap((kind) => performance.getEntriesByType(kind));
  const files = all.filter((one) => !/readyz|sessions/.test(one.name));
  return [files.length, files.reduce((sum, one) => sum + one.transferSize, 0)];
}"""
# From the key that asks to the first character on the page, by the page's own clock.
WATCH = """() => {
  const chat = document.querySelector("#chat");
  window.asked = null;
  window.firstCharacter = null;
  addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    window.asked = performance.now();
    window.firstCharacter = null;
    const seen = new MutationObserver(() => {
      if (![...document.querySelectorAll(".writing .text")].some((one) => one.textContent)) return;
      seen.disconnect();
      window.firstCharacter = performance.now() - window.asked;
    });
    seen.observe(chat, { childList: true, subtree: true, characterData: true });
  }, { capture: true });
}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        sys.exit("needs Playwright: pip install -e '.[browser]'")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not chromium:
        sys.exit("needs Chromium, on PATH or named by CHROMIUM")
    with serving() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        rounds = [one_round(browser, url) for _ in range(args.rounds + 1)][1:]  # one to warm up
        version = browser.version
        browser.close()
    machine = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in describe(1).items())
    print(f"Machine: {machine}, Chromium {version}.\n")
    print(table(rounds))
    return 0


@contextmanager
def serving() -> Iterator[str]:
    """The address of a server with the embedded model and an empty data folder."""
    command = [sys.executable, "-m", "server.cli", "serve", "--port", "0", "--threads", "1"]
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--data-dir", f"{folder}/data"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert process.stdout is not None
            ready = READY.match(process.stdout.readline())
            if ready is None:
                sys.exit((Path(folder) / "log").read_text())
            yield ready[1]
        finally:
            process.terminate()
            process.communicate()


def one_round(browser: "Browser", url: str) -> Mapping[str, float]:
    """Figures of one visit, milliseconds where nothing else is said."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(url)
        page.locator("#model.on").wait_for()
        page.locator("#version").wait_for()
        paint = page.evaluate(PAINT)
        files, size = page.evaluate(LOADED)
        page.evaluate(WATCH)
        found = {"first contentful paint, ms": paint}
        found["first character, untaught, ms"] = ask(page, QUESTION)
        turn = page.locator(".turn").last
        turn.get_by_role("button", name="It should have said…").click()
        turn.get_by_label("It should have said").fill(ANSWER)
        before = page.evaluate("performance.now()")
        turn.get_by_role("button", name="Teach this").click()
        page.locator(".outcome").wait_for()
        found["correction to “Learned”, ms"] = page.evaluate("performance.now()") - before
        found["first character, learned, ms"] = ask(page, OTHER_WORDS)
        assert page.locator(".text").last.inner_text() == ANSWER
        return {**found, "files": files, "bytes over the wire": size}


def ask(page: "Page", question: str) -> float:
    """Ask, wait for the whole answer; milliseconds to its first character."""
    page.get_by_label("Your question").fill(question)
    page.keyboard.press("Enter")
    page.locator(".turn").last.get_by_role("button", name="It should have said…").wait_for()
    return float(page.evaluate("window.firstCharacter"))


def table(rounds: Sequence[Mapping[str, float]]) -> str:
    """Median (least-greatest) of every figure, in Markdown."""
    lines = ["| playground | median (least–greatest) |", "| --- | --- |"]
    for name in rounds[0]:
        values = [one[name] for one in rounds]
        spread = f" ({min(values):.0f}–{max(values):.0f})" if min(values) != max(values) else ""
        lines.append(f"| {name} | {median(values):,.0f}{spread} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
