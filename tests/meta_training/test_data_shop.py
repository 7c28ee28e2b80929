"""The self-written shop that tests and the demonstration teach."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

SHOP = Path(__file__).parents[1] / "data" / "shop.jsonl"


def test_twenty_intents_of_fifteen_wordings_with_one_answer_each() -> None:
    rows = [json.loads(line) for line in SHOP.read_text("utf-8").splitlines()]
    wordings: dict[str, set[str]] = defaultdict(set)
    answers: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        assert list(row) == ["text", "intent", "domain", "answer"]
        assert row["domain"] == "shop"
        wordings[row["intent"]].add(row["text"].lower().strip("?!. "))
        answers[row["intent"]].add(row["answer"])
    assert len(wordings) == 20
    assert {len(texts) for texts in wordings.values()} == {15}
    assert len(set().union(*wordings.values())) == 300
    assert {len(texts) for texts in answers.values()} == {1}
    assert len(set().union(*answers.values())) == 20
    assert all(8 <= len(text.split()) <= 22 for texts in answers.values() for text in texts)
