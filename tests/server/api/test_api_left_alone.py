"""Thumbs down where nothing was taught, beside what was: that question is the base's again."""

from __future__ import annotations

import httpx
import pytest
from api_calls import ask, ok, teach

ABROAD = "Yes, we send parcels to every country in Europe for nine euros."
RETURN = "Of course: thirty days, and the label is in the box."
TAUGHT = {"do you ship abroad?": ABROAD, "can I return an item?": RETURN}
STRAY, REWORDED = "do you ship on sundays?", "do you ship on mondays?"


@pytest.fixture
def stray(gated: httpx.Client) -> str:
    """The completion of a question that is near to what a session was taught, and another one."""
    items = [{"prompt": prompt, "completion": answer} for prompt, answer in TAUGHT.items()]
    teach(gated, "s", items)
    found = ask(gated, "s", STRAY, max_tokens=40)
    assert found["text"] == ABROAD, "or there is nothing to put right"
    return str(found["id"])


def test_a_dislike_gives_a_question_back_to_the_base(gated: httpx.Client, stray: str) -> None:
    base = {prompt: ask(gated, "untaught", prompt, max_tokens=40) for prompt in (STRAY, REWORDED)}
    assert ask(gated, "s", REWORDED, max_tokens=40)["text"] == ABROAD
    told = ok(gated.post("/feedback", json={"completion_id": stray, "rating": -1}))
    assert (told["accepted"], told["adapter_version"]) == (True, 2)
    for prompt, untaught in base.items():
        left = ask(gated, "s", prompt, max_tokens=40)
        assert (left["text"], left["adapter_used"]) == (untaught["text"], False)
    assert ask(gated, "s", STRAY, in_context=4)["in_context"] == []
    assert ask(gated, "s", "do you ship abroad?", in_context=4)["in_context"] == [1]
    for prompt, answer in TAUGHT.items():
        assert ask(gated, "s", prompt, max_tokens=40)["text"] == answer
    assert ask(gated, "s", "can you ship it abroad?", max_tokens=40)["text"] == ABROAD
    # Nor does what was taught come back when the base's own answer is disliked, too.
    said = ask(gated, "s", STRAY, max_tokens=40)
    ok(gated.post("/feedback", json={"completion_id": said["id"], "rating": -1}))
    assert not ask(gated, "s", STRAY, max_tokens=40)["adapter_used"]
    # Forgotten, it is as if it had never been said.
    for item in (4, 3):
        ok(gated.delete(f"/sessions/s/feedback/{item}"))
    assert ask(gated, "s", STRAY, max_tokens=40)["text"] == ABROAD
