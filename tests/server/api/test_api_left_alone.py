"""Thumbs down where nothing was taught: that question is the base's, which says something else."""

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
    # Nor does what was taught come back when the base's own answers are disliked, too.
    seen = {ABROAD}
    for _ in range(3):
        said = ask(gated, "s", STRAY, max_tokens=40)
        assert said["text"] not in seen
        assert not said["adapter_used"]
        seen.add(said["text"])
        ok(gated.post("/feedback", json={"completion_id": said["id"], "rating": -1}))
    # Forgotten, it is as if it had never been said.
    for item in (6, 5, 4, 3):
        ok(gated.delete(f"/sessions/s/feedback/{item}"))
    assert ask(gated, "s", STRAY, max_tokens=40)["text"] == ABROAD


def test_no_disliked_answer_comes_again_and_a_liked_one_does(gated: httpx.Client) -> None:
    question, seen = "can I pay by card?", list[str]()
    for version in range(1, 4):
        said = ask(gated, "t", question, max_tokens=40)
        assert said["text"] not in seen
        seen.append(said["text"])
        told = ok(gated.post("/feedback", json={"completion_id": said["id"], "rating": -1}))
        assert (told["accepted"], told["adapter_version"], told["steps"]) == (True, version, 0)
        assert not {"loss_before", "loss_after"} & told.keys(), "there is nothing to lose"
    other = "tell me a joke"
    assert ask(gated, "t", other)["text"] == ask(gated, "untaught", other)["text"]
    choices = ["yes", "no", "perhaps"]
    mine, bases = (ask(gated, s, other, choices=choices) for s in ("t", "untaught"))
    assert mine["choice_logprobs"] == bases["choice_logprobs"]
    liked = ask(gated, "t", question, max_tokens=40)
    ok(gated.post("/feedback", json={"completion_id": liked["id"], "rating": 1}))
    again = ask(gated, "t", question, max_tokens=40)
    assert (again["text"], again["adapter_used"]) == (liked["text"], True)
    items = ok(gated.get("/sessions/t/feedback"))["items"]
    assert [item["status"] for item in items] == ["superseded"] * 3 + ["applied"]
    # Disliked after all, it makes the other three count again.
    ok(gated.post("/feedback", json={"completion_id": liked["id"], "rating": -1}))
    assert ask(gated, "t", question, max_tokens=40)["text"] not in {*seen, liked["text"]}
    items = ok(gated.get("/sessions/t/feedback"))["items"]
    assert [item["status"] for item in items] == [*["applied"] * 3, "superseded", "applied"]
