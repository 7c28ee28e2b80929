"""Intents made from dialogue turns: near in words, never the same turn twice."""

from __future__ import annotations

import pytest

from meta_training.tasks.neighbours import WORDINGS, neighbour_intents, short_turns
from meta_training.tasks.sources import Dialogue

PLACES = {
    "hotel": "please book a quiet hotel room in",
    "museum": "when does that museum open its doors around",
    "garage": "my old car needs some garage close to",
}
TURNS = [
    f"{words} {city}"
    for words in PLACES.values()
    for city in ("Rome", "Oslo", "Lima", "Bonn", "Cork", "Nice", "Bern", "York", "Graz")
]


def test_turns_about_one_thing_come_together() -> None:
    intents = neighbour_intents(TURNS, len(TURNS), seed=0)
    assert len(intents) == len(PLACES)
    for intent in intents:
        about = {place for place in PLACES if place in intent.questions[0]}
        assert len(intent.questions) == WORDINGS
        assert all(any(place in text for place in about) for text in intent.questions)


def test_no_turn_is_in_two_intents() -> None:
    texts = [text for intent in neighbour_intents(TURNS, 20, seed=1) for text in intent.questions]
    assert len(texts) == len(set(texts))
    assert set(texts) <= set(TURNS)


def test_one_seed_one_set() -> None:
    first = neighbour_intents(TURNS, 9, seed=4)
    assert first == neighbour_intents(TURNS, 9, seed=4)
    assert first != neighbour_intents(TURNS, 9, seed=5)


@pytest.mark.parametrize(("turns", "count"), [([], 5), (TURNS, 0), (TURNS[:4], 5)])
def test_too_little_gives_none(turns: list[str], count: int) -> None:
    assert neighbour_intents(turns, count, seed=0) == []


def test_short_turns_are_as_long_as_questions_and_come_once() -> None:
    turns = (("user", "I want a red lamp"), ("assistant", "Yes"), ("user", "I want a red lamp"))
    long = (("user", "word " * 40),)
    dialogues = [Dialogue("a", None, turns), Dialogue("a", None, long)]
    assert short_turns(dialogues) == ["I want a red lamp"]
