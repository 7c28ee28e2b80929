"""The example bot on questions and answers, with the model that is in the repository."""

import argparse
import gzip
import json
import os
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server_harness import LiveServer

from server.settings import Settings

ROOT = Path(__file__).parents[3]
BOT = ROOT / "docs" / "examples" / "service_bot.py"
SHOP = ROOT / "tests" / "data" / "shop.jsonl"
DATA = Path(os.environ.get("TEST_DATA", ROOT / "data"))
INTENTS, TAUGHT, ASKED = 4, 6, 2  # wordings of each intent

Bot = Callable[..., tuple[str, str]]

prepared = pytest.mark.skipif(
    not DATA.is_dir(),
    reason=f"no data in {DATA}: run `innerloop data`, or name its folder in TEST_DATA",
)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    data = tmp_path_factory.mktemp("bot") / "data"
    with LiveServer(Settings(data_dir=data, port=0, threads=1)) as server:
        yield server


@pytest.fixture
def bot(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bot:
    """Runs the script; gives what it prints and what it tells."""

    def run(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", [str(BOT), *arguments, "--url", live.urls[0]])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(BOT), run_name="__main__")
        found = capsys.readouterr()
        assert ended.value.code == 0, found.err
        return found.out.rstrip("\n"), found.err

    return run


def test_it_answers_what_it_was_not_taught_in_these_words(bot: Bot, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in SHOP.read_text("utf-8").splitlines()]
    intents = list(dict.fromkeys(row["intent"] for row in rows))[:INTENTS]
    wordings = [[row for row in rows if row["intent"] == intent] for intent in intents]
    file = tmp_path / "answers.jsonl"
    taught = [row for several in wordings for row in several[:TAUGHT]]
    file.write_text("".join(json.dumps(row) + "\n" for row in taught), "utf-8")
    held_out = [row for several in wordings for row in several[TAUGHT : TAUGHT + ASKED]]
    _, told = bot(str(file), held_out[0]["text"])
    session = session_in(told)

    def right(rows: list[dict[str, str]]) -> int:
        given = [bot(str(file), row["text"], "--session", session)[0] for row in rows]
        return sum(text == row["answer"] for text, row in zip(given, rows, strict=True))

    # How many are right is for `innerloop evaluate` to say: an untaught model has none of them.
    assert right([several[0] for several in wordings]) >= INTENTS - 1
    assert right(held_out) >= len(held_out) // 4


def rows_of(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    lines = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in lines.decode("utf-8").splitlines()]


def session_in(told: str) -> str:
    return told.split("(session ")[1].split(",")[0]


@prepared
def test_a_hotels_own_questions_from_prepared_data(bot: Bot) -> None:
    name = "faq-dstc9.jsonl.gz"
    of_test = [row for row in rows_of(name) if row["split"] == "test" and row["domain"] == "hotel"]
    entity = of_test[0]["entity"]
    rows = [row for row in of_test if row["entity"] == entity]
    asked = ("--where", f"entity={entity}")
    _, told = bot(str(DATA / name), rows[0]["question"], *asked)
    said = [bot("-", row["question"], "--session", session_in(told))[0] for row in rows]
    right = sum(text == row["answer"] for text, row in zip(said, rows, strict=True))
    assert right >= len(rows) // 2


@prepared
def test_ones_own_answers_to_intents_of_prepared_data(bot: Bot, tmp_path: Path) -> None:
    replies = {
        "track_order": "Every parcel travels by hot-air balloon, and lands on a Tuesday.",
        "delete_account": "Send us the silver key by post, and your account is gone.",
        "newsletter_subscription": "Whisper your address to the oak, and our letter comes.",
    }
    file, path = tmp_path / "replies.json", DATA / "bitext-support.jsonl"
    file.write_text(json.dumps(replies), "utf-8")
    rows = [row for row in rows_of(path.name) if row["split"] == "test"]
    held_out = [[r for r in rows if r["intent"] == intent][:2] for intent in replies]
    options = ("--replies", str(file), "--where", "split=train", "--wordings", "5")
    _, told = bot(str(path), "where is my order", *options)
    asked = [row for several in held_out for row in several]
    said = [bot("-", row["text"], "--session", session_in(told))[0] for row in asked]
    right = sum(text == replies[row["intent"]] for text, row in zip(said, asked, strict=True))
    assert right >= len(asked) // 3


def read(path: Path, **options: Any) -> list[tuple[str, str]]:
    given = {"where": [], "style": None, "replies": None, "wordings": None} | options
    pairs = runpy.run_path(str(BOT))["read_answers"](argparse.Namespace(answers=path, **given))
    return list(pairs)


def test_the_formats_of_prepared_data(tmp_path: Path) -> None:
    faq = tmp_path / "faq.jsonl.gz"
    lines = [{"entity": e, "question": f"{e}?", "answer": f"{e}."} for e in "AAB"]
    faq.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    assert read(faq, where=["entity=A"]) == [("A?", "A.")] * 2
    assert read(faq, wordings=1) == [("A?", "A."), ("B?", "B.")]
    styled = tmp_path / "style.jsonl"
    styled.write_text(json.dumps({"query": "Tall?", "responses": {"witty": "Very."}}), "utf-8")
    assert read(styled, style="witty") == [("Tall?", "Very.")]
    intents, replies = tmp_path / "intents.jsonl", tmp_path / "replies.json"
    intents.write_text('{"text": "a", "intent": "i"}\n\n{"text": "b", "intent": "k"}\n', "utf-8")
    replies.write_text('{"k": "Kay."}', "utf-8")
    assert read(intents, replies=replies) == [("b", "Kay.")]
    for path, options, told in (
        (intents, {}, "intents.jsonl:1: a line without 'answer'; see --style and --replies"),
        (styled, {"style": "dry"}, "without 'dry'"),
        (faq, {"where": ["entity=C"]}, "0 pairs, and 1 to 256 can be taught; see --where"),
        (replies, {}, "a line without a question"),
    ):
        with pytest.raises(ValueError, match=told):
            read(path, **options)
