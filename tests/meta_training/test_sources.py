"""Good rows are read; bad ones are refused with file, line and field."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mini_data import FAQ, PERSONAS, SHOP, write_rows

from meta_training.tasks.sources import (
    DataError,
    load_dialogues,
    load_faq_answers,
    load_intents,
    load_personas,
    read_rows,
)
from meta_training.tasks.tables import read_table

ROW = {"text": "Where is it?", "intent": "where", "domain": "shop"}
TURNS = [{"role": "user", "text": "Hi"}, {"role": "assistant", "text": "Hello."}]
CHAT = {"query": "Do you sing?", "responses": {"dry": "No."}, "group": 0}
Load = Callable[[Path], Any]


def asked(count: int, **more: str) -> list[dict[str, str]]:
    return [ROW | {"text": f"Where is number {i}?"} | more for i in range(count)]


def faq(path: Path) -> list[str]:
    return load_faq_answers(path, "train")


def test_the_shop_is_twenty_intents_with_their_answers() -> None:
    intents = load_intents(SHOP)
    assert len(intents) == 20
    assert {len(intent.questions) for intent in intents} == {15}
    assert {intent.source for intent in intents} == {"shop"}
    assert len({intent.answer for intent in intents}) == 20
    assert None not in {intent.answer for intent in intents}


def test_intents_are_grouped_by_domain_and_name(tmp_path: Path) -> None:
    rows = asked(8) + asked(8, domain="bank") + asked(8, intent="price")
    intents = load_intents(write_rows(tmp_path / "a.jsonl.gz", rows))
    assert [(i.source, i.domain, i.name) for i in intents] == [
        ("a", "bank", "where"),
        ("a", "shop", "price"),
        ("a", "shop", "where"),
    ]


def test_repeats_other_languages_long_questions_and_leftovers_do_not_count(tmp_path: Path) -> None:
    rows = [
        *asked(8),
        *asked(8),
        *asked(9, intent="oos"),
        *asked(7, intent="rare"),
        *(ROW | {"text": f"Wo {i}?", "lang": "de"} for i in range(8)),
        ROW | {"text": " ".join(["very"] * 23)},
        ROW | {"text": " ".join(["just"] * 22)},
    ]
    (intent,) = load_intents(write_rows(tmp_path / "a.jsonl", rows))
    assert intent.name == "where"
    assert len(intent.questions) == 9


def test_dialogues_keep_turns_with_text_and_their_split(tmp_path: Path) -> None:
    rows = [
        {"source": "s", "split": "test", "turns": [*TURNS, {"role": "user", "text": " "}]},
        {"turns": TURNS},
    ]
    first, second = load_dialogues(write_rows(tmp_path / "d.jsonl", rows))
    assert first.turns == (("user", "Hi"), ("assistant", "Hello."))
    assert (first.source, first.split) == ("s", "test")
    assert (second.source, second.split) == ("d.jsonl", None)


def test_personas_are_grouped_with_one_answer_each(tmp_path: Path) -> None:
    rows = [CHAT, CHAT | {"query": "Can you sing?", "responses": {"dry": "Later."}}, CHAT]
    (group,) = load_personas(write_rows(tmp_path / PERSONAS, rows))
    assert group.questions == ("Do you sing?", "Can you sing?")
    assert group.answers == (("dry", "No."),)


def test_faq_answers_are_of_one_split_without_repeats(tmp_path: Path) -> None:
    rows = [{"answer": a, "split": s} for a, s in (("A", "train"), ("B", "test"), ("A", "train"))]
    path = write_rows(tmp_path / FAQ, rows)
    assert load_faq_answers(path, "train") == ["A"]
    assert load_faq_answers(path, "test") == ["B"]


@pytest.mark.parametrize(
    ("load", "row", "field"),
    [
        (load_intents, {**ROW, "text": 5}, "text"),
        (load_intents, {**ROW, "text": " "}, "text"),
        (load_intents, {"text": "a", "domain": "b"}, "intent"),
        (load_intents, {"text": "a", "intent": "b"}, "domain"),
        (load_intents, {**ROW, "answer": None}, "answer"),
        (load_dialogues, {}, "turns"),
        (load_dialogues, {"turns": []}, "turns"),
        (load_dialogues, {"turns": ["Hi"]}, "turns"),
        (load_dialogues, {"turns": [{"role": "user"}]}, "turns"),
        (load_dialogues, {"turns": [{"role": "user", "text": " "}]}, "turns"),
        (load_dialogues, {"turns": [{"role": "<|end|>", "text": "Hi"}]}, "role"),
        (load_dialogues, {"turns": [{"text": "Hi"}]}, "role"),
        (load_personas, {**CHAT, "group": None}, "group"),
        (load_personas, {**CHAT, "query": ""}, "query"),
        (load_personas, {**CHAT, "responses": "No."}, "responses"),
        (load_personas, {**CHAT, "responses": {"dry": 1}}, "dry"),
        (faq, {"split": "train"}, "answer"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(
    tmp_path: Path, load: Load, row: dict[str, Any], field: str
) -> None:
    good = {**ROW, **CHAT, "turns": TURNS, "answer": "A", "split": "train"}
    path = write_rows(tmp_path / "rows.jsonl", [good, good, row])
    with pytest.raises(DataError) as caught:
        load(path)
    assert f"{path}:3: field '{field}'" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "not JSON"),
        (b"[1]", "expected an object, found list"),
        (b"NaN", "not JSON: NaN"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b"\n" + line + b"\n")
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    assert f"{path}:2: {words}" in str(caught.value)


def test_a_missing_file_says_how_to_get_it(tmp_path: Path) -> None:
    public = tmp_path / "clinc150.jsonl"
    with pytest.raises(DataError, match="innerloop data --target") as caught:
        load_intents(public)
    assert str(public) in str(caught.value)


@pytest.mark.parametrize("name", ["own.jsonl", "own.jsonl.gz", "own.tsv"])
def test_nobody_is_told_to_fetch_a_file_of_their_own(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(DataError, match=f"{name} is missing: give --data") as caught:
        list(read_table(path))
    said = [str(caught.value)]
    path.write_bytes(b"text\tlabel\n\xe9\ta\n" if name.endswith("tsv") else b"no JSON \xe9")
    with pytest.raises(DataError, match=name) as caught:
        list(read_table(path))
    assert not any("innerloop data" in message for message in [*said, str(caught.value)])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("clinc150.jsonl", b'{"text": "caf\xe9"}\n'),
        ("sgd-intents.jsonl.gz", b"no gzip"),
        ("sgd-intents.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 50, mtime=0)[:-9]),
        ("sgd-intents.jsonl.gz", gzip.compress(b'{"text": "a"}\n', mtime=0)[:12] + b"\xff" * 30),
    ],
)
def test_a_damaged_file_says_how_to_replace_it(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match="innerloop data --force") as caught:
        list(read_rows(path))
    assert f"{path}:" in str(caught.value)
