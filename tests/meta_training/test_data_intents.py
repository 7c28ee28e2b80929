"""Readers of labelled utterances, on small files of the originals' form."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_files import roots_of, source_named

from meta_training.data.convert import convert
from meta_training.data.errors import FormError
from meta_training.data.rows import Row

# name -> (text, intent, domain, split) in order
EXPECTED = {
    "clinc150": [
        ("who painted this ham", "oos", "oos", "val"),
        ("please freeze it", "freeze_account", "banking", "train"),
        ("what day is it", "date", "utility", "train"),
        ("how tall is soup", "oos", "oos", "test"),
        ("freeze my jam account", "freeze_account", "banking", "test"),
        ("sing to my hat", "oos", "oos", "train"),
    ],
    "multidogo": [
        ("please give me seat 0", "changeseat", "airline", "val"),
        ("please give me seat 1", "changeseat", "airline", "test"),
        ("please give me seat 2", "changeseat", "airline", "test"),
        ("please give me seat 3", "changeseat", "airline", "train"),
        ("please give me seat 4", "changeseat", "airline", "train"),
        ("please give me seat 5", "changeseat", "airline", "train"),
    ],
    "natcs-intents": [
        ("I need my development", "GetQuote", "insurance", "val"),
        ("I need my test-banking", "GetQuote", "banking", "test"),
        ("I need my test-finance", "GetQuote", "finance", "test"),
    ],
    "hint3": [
        row
        for domain in ("curekart", "powerplay11", "sofmattress")
        for row in (
            ("where is it", "ORDER_STATUS", domain, "train"),
            ('I need 72" × 48", please', "SIZE", domain, "test"),
            ("kya hai", "oos", domain, "test"),
        )
    ],
    "bitext-support": [
        row
        for name, split in (("Training", "train"), ("Validation", "val"), ("Testing", "test"))
        for row in (
            (f"cancel order {name}, please", "cancel_order", "order", split),
            (f"move to {name} street", "change_shipping_address", "shipping_address", split),
        )
    ],
    "snips": [
        row
        for intent in ("GetWeather", "RateBook")
        for row in (
            ("Will it rain in Málaga?", intent, "voice_assistant", "train"),
            ("ten stars", intent, "voice_assistant", "test"),
        )
    ],
    "rasa-nlu": [
        ("open an urgent issue", "open_incident", "helpdesk", "train"),
        ("it is low priority", "open_incident", "helpdesk", "train"),
        ("pay my card", "pay_cc", "retail_bank", "train"),
        ("a red one", "car_type", "car_purchase", "train"),
    ],
    "sebis-nlu": [
        row
        for name, domain in (
            ("AskUbuntu", "ask_ubuntu"),
            ("WebApplications", "web_applications"),
            ("Chatbot", "munich_transport"),
        )
        for row in (
            (f"How do I {name}?", "Help", domain, "test"),
            (f"Where is {name}", "Find", domain, "train"),
        )
    ],
    "botframework-en": [
        ("never mind", "Cancel", "general", "train"),
        ("choose top left one", "Cancel", "general", "train"),
        ("coldest month in oslo", "Ask", "weather", "train"),
    ],
    "goemotions": [
        ("I like soup", "joy", "emotion", "train"),
        ("Soup is soup", "neutral", "emotion", "val"),
        ("Fine's soup", "admiration", "emotion", "test"),
    ],
    "sentiment-sentences": [
        ("A good spoon.", "positive", "amazon_products", "train"),
        ("It bent.", "negative", "amazon_products", "train"),
        ("A slow film.", "negative", "imdb_movies", "train"),
        ("Lovely crêpes.", "positive", "yelp_restaurants", "train"),
    ],
    "sgd-intents": [
        ("I want a very small car.", "ReserveCar", "rentalcars", "train"),
        ("My money?", "CheckBalance", "banks", "val"),
        ("Play.", "PlaySong", "music", "test"),
    ],
}


def read(name: str, folder: Path) -> list[Row]:
    source = source_named(name)
    roots = roots_of(source, folder)
    # A checkout leaves these two out; the small trees have them to show that it does.
    (
        folder / "google-research-datasets/dstc8-schema-guided-dialogue/train/dialogues_037.json"
    ).unlink(missing_ok=True)
    (folder / "RasaHQ/NLU-training-data/mixed-smalltalk+transport/nlu.yml").unlink(missing_ok=True)
    return convert(source, roots)


@pytest.mark.parametrize("name", EXPECTED)
def test_utterances(name: str, tmp_path: Path) -> None:
    rows = read(name, tmp_path)
    assert [tuple(row.values()) for row in rows] == EXPECTED[name]
    assert all(list(row) == ["text", "intent", "domain", "split"] for row in rows)


def test_xsid_numbers_translations_alike(tmp_path: Path) -> None:
    rows = read("xsid-multilingual", tmp_path)
    val = [row for row in rows if row["split"] == "val"]
    assert rows[: len(val)] == val
    assert [(row["lang"], row["pid"], row["intent"], row["text"]) for row in val] == [
        ("de-ba", "val-1", "weather/find", "de-ba, valid one?"),
        ("de-ba", "val-2", "alarm/set", "de-ba valid two"),
        ("de", "val-1", "weather/find", "de, valid one?"),
        ("de", "val-2", "alarm/set", "de valid two"),
        ("nb", "val-2", "alarm/set", "ikke valid"),
        ("zh", "val-1", "weather/find", "zh , valid one ?"),
        ("zh", "val-2", "alarm/set", "zh valid two"),
    ]
    assert [row["pid"] for row in rows[len(val) :]] == [
        row["pid"].replace("val", "test") for row in val
    ]
    assert list(rows[0]) == ["text", "intent", "domain", "split", "lang", "pid"]


def test_home_assistant_takes_a_bounded_sample_of_rich_languages(tmp_path: Path) -> None:
    rows = read("homeassistant-multilingual", tmp_path)
    assert {row["lang"] for row in rows} == {"en"}
    assert {row["domain"] for row in rows} == {"light"}
    of_a = [row["text"] for row in rows if row["intent"] == "HassA"]
    assert len(of_a) == 12
    assert of_a == sorted(of_a, key=lambda text: int(text.split()[-1]))
    assert sum(row["intent"] == "HassB" for row in rows) == 1
    assert rows == read("homeassistant-multilingual", tmp_path)


def test_files_of_another_form_are_refused_with_source_and_commit(tmp_path: Path) -> None:
    source = source_named("clinc150")
    (root,) = roots_of(source, tmp_path)
    (root / "data/data_full.json").write_text('{"train": [["only a text"]]}')
    with pytest.raises(FormError, match=rf"clinc150: .*{source.origins[0].commit}"):
        convert(source, [root])
    (root / "data/data_full.json").unlink()
    with pytest.raises(FormError, match=r"data_full\.json"):
        convert(source, [root])


def test_a_source_without_rows_is_an_error(tmp_path: Path) -> None:
    source = source_named("bitext-support")
    with pytest.raises(FormError, match="no row"):
        convert(source, [tmp_path])
