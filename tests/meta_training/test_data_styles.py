"""Readers of chit-chat, FAQs and instructions, on small files of the originals' form."""

from __future__ import annotations

from pathlib import Path

from data_files import put, roots_of, source_named, tabs

from meta_training.data.convert import convert
from meta_training.data.rows import Row
from meta_training.data.styles import STYLES_EN


def read(name: str, folder: Path) -> list[Row]:
    source = source_named(name)
    return convert(source, roots_of(source, folder))


def test_chitchat_joins_the_personalities(tmp_path: Path) -> None:
    rows = read("style-chitchat-en", tmp_path)
    assert [row["query"] for row in rows] == [
        "Do you like soup?",
        "Is soup nice",
        "Are you a spoon?",
    ]
    assert rows[0] == {
        "query": "Do you like soup?",
        "lang": "en",
        "responses": {
            "professional": "No.",
            "friendly": "Nah!",  # the first of its two answers
            "witty": "Soup likes me.",
            "caring": "Have some, dear.",
        },
        "group": 0,
    }


def test_queries_with_the_same_answers_share_a_group(tmp_path: Path) -> None:
    head = ("Question", "Answer", "Source", "Metadata")
    pairs = [("a", "1"), ("b", "2"), ("c", "1")]
    table = tabs(head, *[(query, answer, "q", "m") for query, answer in pairs])
    put(tmp_path, {f"qna_chitchat_{style}.tsv": table for style in STYLES_EN})
    rows = convert(source_named("style-chitchat-en"), [tmp_path])
    assert [(row["query"], row["group"]) for row in rows] == [("a", 0), ("c", 0), ("b", 1)]


def test_spanish_chitchat_is_bounded_and_the_same_each_time(tmp_path: Path) -> None:
    rows = read("style-chitchat-es", tmp_path)
    assert len(rows) == 40
    assert {row["group"] for row in rows} == {0}
    assert rows == read("style-chitchat-es", tmp_path)
    numbers = [int(row["query"].rstrip("?").split()[-1]) for row in rows]
    assert numbers == sorted(numbers)


def test_personality_chat_has_queries_and_variants(tmp_path: Path) -> None:
    rows = read("style-personalitychat", tmp_path)
    assert [(row["style"], row["kind"]) for row in rows] == [
        (style, kind)
        for style in ("professional", "friendly", "humorous")
        for kind in ("query", "variant")
    ]
    assert rows[0] == {
        "query": "Cook",
        "scenario": "Ability",
        "style": "professional",
        "response": "No, Professional.",
        "kind": "query",
    }
    assert rows[1]["query"] is None
    assert rows[1]["response"] == "Cannot, Professional."


def test_faq_entries_of_the_first_release_are_train(tmp_path: Path) -> None:
    rows = read("faq-dstc9", tmp_path)
    assert [(row["id"], row["entity"], row["split"]) for row in rows] == [
        ("dstc9-hotel-7-0", "HEN HOUSE", "train"),
        ("dstc9-hotel-7-1", "HEN HOUSE", "test"),
        ("dstc9-taxi-*-0", None, "train"),
    ]
    assert list(rows[0]) == ["id", "domain", "entity", "question", "answer", "split"]
    assert rows[1]["answer"] == "There is."


def test_instructions_keep_their_layout(tmp_path: Path) -> None:
    rows = read("instructions-selfinstruct-human", tmp_path)
    assert [row["id"] for row in rows] == ["seed_task_0", "user_oriented_task_0"]
    assert rows[0]["output"] == "Soup,\n  hot"
    assert [row["is_classification"] for row in rows] == [False, None]
    assert [row["source"] for row in rows] == ["seed_tasks", "user_oriented"]
