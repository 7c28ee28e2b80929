"""The embedded model with the sentence encoder that comes along, and sessions that change it."""

from __future__ import annotations

from pathlib import Path

import httpx
from api_calls import ok
from server_harness import LiveServer, make_settings

from server.settings import MODELS

ANSWER = "Every parcel abroad travels by hot-air balloon."
TAUGHT, OTHER_WORDS = "do you ship abroad?", "can you send it to another country?"


def teach(client: httpx.Client, session: str) -> None:
    examples = [{"prompt": TAUGHT, "completion": ANSWER}]
    assert ok(client.post("/adapt", json={"session_id": session, "examples": examples}))["accepted"]


def ask(client: httpx.Client, session: str, prompt: str) -> tuple[str, bool]:
    answer = ok(client.post("/generate", json={"session_id": session, "prompt": prompt}))
    return answer["text"], answer["adapter_used"]


def test_other_words_need_no_word_in_common(gated: httpx.Client) -> None:
    assert ok(gated.get("/admin/engine"))["encoder"] == "all-MiniLM-L6-v2"
    assert ask(gated, "words", OTHER_WORDS)[1] is False
    teach(gated, "words")
    assert ask(gated, "words", OTHER_WORDS) == (ANSWER, True)
    assert ask(gated, "words", "tell me a joke")[1] is False
    assert ask(gated, "another", OTHER_WORDS)[1] is False


def test_a_session_survives_the_encoder_coming_and_going(tmp_path: Path) -> None:
    settings = make_settings(MODELS / "innerloop-tiny", tmp_path)
    without = settings.model_copy(update={"encoder": "none"})
    for number, each in enumerate((without, settings, without)):
        with LiveServer(each) as server, server.client() as client:
            assert (
                ok(client.get("/admin/engine"))["encoder"] == (None, "all-MiniLM-L6-v2")[number % 2]
            )
            if number == 0:
                teach(client, "shop")
            assert ask(client, "shop", TAUGHT) == (ANSWER, True)
            assert ask(client, "shop", OTHER_WORDS)[1] is (number == 1)
