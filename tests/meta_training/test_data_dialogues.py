"""Readers of dialogues, on small files of the originals' form."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_files import Zipped, put, roots_of, source_named

from meta_training.data.convert import convert
from meta_training.data.errors import FormError
from meta_training.data.rows import Row

U, A = "user", "assistant"
# name -> (id, source, domain, split, turns) in order
EXPECTED = {
    "dialogues-sgd": [
        (
            "sgd-train-1_00000",
            "sgd",
            "rentalcars+weather",
            "train",
            [(U, "I want a very small car."), (A, "Which day?"), (U, "Monday.")],
        ),
        ("sgd-val-1_00000", "sgd", "banks+weather", "val", [(U, "My money?"), (A, "2.")]),
        ("sgd-test-1_00000", "sgd", "music+weather", "test", [(U, "Play."), (A, "Playing.")]),
    ],
    "dialogues-star": [
        ("star-9", "star", "bank+ride", None, [(U, "Hi"), (A, "Hey")]),
        (
            "star-10",
            "star",
            "bank+ride",
            None,
            [(U, "I need a ride. To the hills."), (A, "For how many?")],
        ),
    ],
    "dialogues-taskmaster4": [
        ("dlg-1", "taskmaster4", "coffee_ordering", None, [(U, "one tea"), (A, "in a cup?")]),
    ],
    "dialogues-multiwoz": [
        (
            "multiwoz-PMUL1",
            "multiwoz2.1",
            "hotel",
            "val",
            [(U, "A room, please."), (A, "It's full, sorry!")],
        ),
        ("multiwoz-SNG2", "multiwoz2.1", "taxi", "test", [(U, "A taxi."), (A, "It comes.")]),
    ],
    "dialogues-woz2": [
        (
            f"woz-en-{number}",
            "woz2.0",
            "restaurant",
            split,
            [(U, f"Any food {part}?"), (A, "Which kind?"), (U, "Soup.")],
        )
        for number, (part, split) in enumerate(
            (("train", "train"), ("validate", "val"), ("test", "test"))
        )
    ],
    "dialogues-camrest": [
        (f"camrest-{n}", "camrest676", "restaurant", split, [(U, f"food {split}"), (A, "Here.")])
        for n, split in enumerate(("train", "val", "test"))
    ],
    "dialogues-topicalchat": [
        (
            f"topical-t_{part}_{kind}",
            "topical-chat",
            "open_chat",
            split,
            [(U, f"Do you like {part} {kind}?"), (A, "Yes."), (U, "Me too.")],
        )
        for part, split in (("valid", "val"), ("test", "test"))
        for kind in ("freq", "rare")
    ],
    # The same dialogue is in val and test: the copy in test is kept.
    "dialogues-crosswoz-zh": [
        (
            "crosswoz-12",
            "crosswoz",
            "attraction+restaurant",
            "test",
            [(U, "你好，我饿了。"), (A, "吃面吧。")],
        ),
    ],
}


def read(name: str, folder: Path) -> list[Row]:
    source = source_named(name)
    roots = roots_of(source, folder)
    (
        folder / "google-research-datasets/dstc8-schema-guided-dialogue/train/dialogues_037.json"
    ).unlink(missing_ok=True)
    return convert(source, roots)


@pytest.mark.parametrize("name", EXPECTED)
def test_dialogues(name: str, tmp_path: Path) -> None:
    found = [
        (
            *(row[field] for field in ("id", "source", "domain", "split")),
            [(turn["role"], turn["text"]) for turn in row["turns"]],
        )
        for row in read(name, tmp_path)
    ]
    assert found == EXPECTED[name]


def test_extra_fields_stand_before_the_turns(tmp_path: Path) -> None:
    row = read("dialogues-star", tmp_path)[0]
    assert list(row) == ["id", "source", "domain", "split", "tasks", "happy", "turns"]
    assert row["tasks"] == ["bank_balance", "ride_book"]
    assert row["happy"] is True
    assert read("dialogues-crosswoz-zh", tmp_path)[0]["lang"] == "zh"
    assert read("dialogues-woz2", tmp_path)[0]["lang"] == "en"


def test_a_broken_zip_is_refused(tmp_path: Path) -> None:
    source = source_named("dialogues-camrest")
    (root,) = roots_of(source, tmp_path)
    put(root, {"data/camrest/val.json.zip": b"PK not a zip"})
    with pytest.raises(FormError, match="dialogues-camrest"):
        convert(source, [root])
    put(root, {"data/camrest/val.json.zip": Zipped([{"dialogue_id": 1, "dial": [{"usr": {}}]}])})
    with pytest.raises(FormError, match="transcript"):
        convert(source, [root])
