"""The embedded model with the sentence encoder that comes along, and sessions that change it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import pytest
from api_calls import ok
from server_harness import LiveServer, make_settings

from server.settings import MODELS, Settings

ENCODER = "all-MiniLM-L6-v2"
ANSWER = "Every parcel abroad travels by hot-air balloon."
TAUGHT, OTHER_WORDS = "do you ship abroad?", "can you send it to another country?"
HOUSE_ANSWER = "The till closes when the cat does."
HOUSE_TAUGHT, FAR = "when do you close?", "tell me a joke"


def teach(client: httpx.Client, session: str) -> None:
    examples = [{"prompt": TAUGHT, "completion": ANSWER}]
    assert ok(client.post("/adapt", json={"session_id": session, "examples": examples}))["accepted"]


def teach_house(client: httpx.Client) -> None:
    examples = [{"prompt": HOUSE_TAUGHT, "completion": HOUSE_ANSWER}]
    assert ok(client.post("/house/adapt", json={"examples": examples}))["accepted"]


def ask(client: httpx.Client, session: str, prompt: str) -> tuple[str, bool]:
    answer = ok(client.post("/generate", json={"session_id": session, "prompt": prompt}))
    return answer["text"], answer["adapter_used"]


def encoder_of(client: httpx.Client) -> str | None:
    found: str | None = ok(client.get("/admin/engine"))["encoder"]
    return found


def test_other_words_need_no_word_in_common(gated: httpx.Client) -> None:
    assert encoder_of(gated) == ENCODER
    assert ask(gated, "words", OTHER_WORDS)[1] is False
    teach(gated, "words")
    assert ask(gated, "words", OTHER_WORDS) == (ANSWER, True)
    assert ask(gated, "words", FAR)[1] is False
    assert ask(gated, "another", OTHER_WORDS)[1] is False


@pytest.fixture
def with_and_without(tmp_path: Path) -> tuple[Settings, Settings]:
    """The embedded model with its encoder and without, on the same Redis."""
    settings = make_settings(MODELS / "innerloop-tiny", tmp_path)
    return settings, settings.model_copy(update={"encoder": "none"})


@pytest.mark.parametrize("house", [False, True])
def test_a_session_survives_the_encoder_coming_and_going(
    with_and_without: tuple[Settings, Settings], house: bool
) -> None:
    settings, without = with_and_without
    for number, each in enumerate((without, settings, without)):
        with LiveServer(each) as server, server.client() as client:
            assert encoder_of(client) == (ENCODER if each is settings else None)
            if number == 0:
                teach(client, "shop")
                if house:
                    teach_house(client)
            assert ask(client, "shop", TAUGHT) == (ANSWER, True)
            assert ask(client, "shop", OTHER_WORDS)[1] is (each is settings)
            if house:
                assert ask(client, "shop", HOUSE_TAUGHT) == (HOUSE_ANSWER, True)
                assert ask(client, "fresh", HOUSE_TAUGHT) == (HOUSE_ANSWER, True)
            assert ask(client, "shop", FAR)[1] is False
            versions = ok(client.get("/admin/sessions/shop"))["versions"]
            assert len(versions) == number + 1, "derived again once"


def test_a_gate_is_as_strict_as_the_server_is_told(tmp_path: Path) -> None:
    """For what was taught before, too, and without deriving anything again."""
    settings = make_settings(MODELS / "innerloop-tiny", tmp_path)
    with LiveServer(settings) as server, server.client() as client:
        teach(client, "shop")
        assert ask(client, "shop", OTHER_WORDS) == (ANSWER, True)
    for margin, other_words, far in ((1, False, False), (-1, True, True)):
        told = settings.model_copy(update={"gate_margin": margin})
        with LiveServer(told) as server, server.client() as client:
            assert ask(client, "shop", TAUGHT) == (ANSWER, True)
            assert ask(client, "shop", OTHER_WORDS)[1] is other_words
            assert ask(client, "shop", FAR)[1] is far
            assert len(ok(client.get("/admin/sessions/shop"))["versions"]) == 1


def test_a_session_gets_the_gate_that_its_model_did_not_have(tmp_path: Path) -> None:
    model = Path(shutil.copytree(MODELS / "innerloop-tiny", tmp_path / "model"))
    (model / "gate_words.safetensors").unlink()
    for name in ("inner_rule.json", "gate_encoders.json"):
        content = json.loads((model / name).read_text("utf-8"))
        if name == "inner_rule.json":
            content["gate"] = None
        else:
            content["encoders"][0]["gate"]["words"] = None
        (model / name).write_text(json.dumps(content), encoding="utf-8")
    settings = make_settings(model, tmp_path / "data")
    without = settings.model_copy(update={"encoder": "none"})
    with LiveServer(without) as server, server.client() as client:
        teach(client, "shop")
        assert ask(client, "shop", FAR)[1] is True, "there is no gate"
    with LiveServer(settings) as server, server.client() as client:
        assert ask(client, "shop", FAR)[1] is False
        assert ask(client, "shop", OTHER_WORDS) == (ANSWER, True)
