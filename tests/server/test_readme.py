"""README does what it says: its calls are made, its routes and commands are all there are."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_harness import LiveServer
from server_process import run

from server.settings import Settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = re.compile(r"(http://)?(localhost|127\.0\.0\.1):8000")
PAGES = {"/", "/admin"}


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)


def table(head: str) -> list[str]:
    """The first cells of a table."""
    rows = TEXT.split(f"| {head} | what it does |")[1].split("\n\n")[0].splitlines()[2:]
    return [row.split("|")[1] for row in rows]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("readme") / "data", port=0)
    with LiveServer(settings) as server:
        yield server


def test_its_calls_teach_a_shop(live: LiveServer) -> None:
    [calls] = [block for block in blocks("sh") if "curl" in block]
    script = ADDRESS.sub(live.urls[0], calls)
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=True)
    taught, answered = re.findall(r"\{.*?\}(?=\{|$)", done.stdout.strip(), re.DOTALL)
    assert '"accepted":true' in taught
    assert "Keep it sixty days, then send it back in any old box." in answered
    before, after = re.findall(r"^\| (?:before|after [^|]*) \| (.*) \|$", TEXT, re.MULTILINE)
    asked = re.findall(r"^\| \| “(.*)” \|$", TEXT, re.MULTILINE)
    with live.client() as http:
        for session, said in (("untaught", before), ("shop-1", after)):
            body = {"session_id": session, "prompt": asked[0]}
            assert http.post("/generate", json=body).json()["text"] == said
    ours, theirs = [ADDRESS.sub(live.urls[0], block) for block in blocks("python")]
    assert "Every parcel abroad travels by hot-air balloon." in python(ours)
    shown = python(theirs + "print(answer.choices[0].message.content)")
    assert "Keep it sixty days" in shown


def python(script: str) -> str:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_its_routes_are_those_that_there_are(live: LiveServer) -> None:
    with live.client() as http:
        paths = set(http.get("/openapi.json").json()["paths"])
    known = {re.sub(r"\{\w+(:path)?\}", "{}", path) for path in paths} | PAGES
    told: set[str] = set()
    for cell in table("route"):
        last = ""
        for name in re.findall(r"`(?:[A-Z]+ )?([^`]*[/…][^`]*)`", cell):
            whole = re.sub(r"\{\w+\}", "{}", name)
            if whole.startswith("…"):  # goes on from the one before it
                last = (last if whole == "…/{}" else last.rpartition("/")[0]) + whole[1:]
            else:
                last = whole
            told.add(last)
    assert told <= known, "README has routes that there are not"
    unsaid = {path for path in known - told if not path.startswith(("/problems", "/jobs"))}
    assert {path for path in unsaid if path.count("/") == 1} == set()
    tails = "".join(table("route")) + TEXT
    assert {path for path in unsaid if path.rstrip("/{}").rpartition("/")[2] not in tails} == set()


def test_its_commands_are_those_that_there_are() -> None:
    shown = run("--help").stdout
    for cell in table("command"):
        for name in re.findall(r"`(?:innerloop )?([a-z-]+)", cell):
            assert re.search(rf"^ +{name} ", shown, re.MULTILINE), name
