"""What operators take out of a session: its adapter for PEFT, and a comparison with the base."""

import io
import json
import zipfile
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import torch
from api_calls import ANSWER, EXAMPLES, QUESTION, ask, ok, problem, teach
from peft import PeftModel
from server_harness import LiveServer, make_settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.peft_io import PeftFormatError
from server.api.handlers import to_problem
from server.flows.answering import Answering
from server.flows.comparing import Comparison, compare
from server.sessions import VersionNotFound


def unpacked(http: httpx.Client, session: str, folder: Path, **query: int) -> tuple[Path, str]:
    response = http.get(f"/admin/sessions/{session}/export", params=query)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
    return folder, response.headers["content-disposition"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_peft_answers_with_the_exported_adapter_as_the_server_does(
    http: httpx.Client, session: str, model_folder: Path, tmp_path: Path
) -> None:
    teach(http, session)
    teach(http, session, [{"prompt": "Hello", "completion": "Hi."}])
    for version in (None, 1):
        query = {} if version is None else {"adapter_version": version}
        folder, disposition = unpacked(http, session, tmp_path / f"{version}", **query)
        about = json.loads((folder / "innerloop.json").read_text())
        assert (about["session_id"], about["adapter_version"]) == (session, version or 2)
        assert disposition.endswith(f'-{version or 2}.zip"')
        assert ":" not in disposition
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, folder)
        chat = [{"role": "user", "content": "Hello"}]
        ids = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=20, do_sample=False)
        text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert text == ask(http, session, "Hello", **query)["text"]


def test_an_export_is_the_same_every_time(http: httpx.Client, session: str) -> None:
    teach(http, session)
    path = f"/admin/sessions/{session}/export"
    assert http.get(path).content == http.get(path).content


def test_what_cannot_be_exported(http: httpx.Client, new_session: Callable[[], str]) -> None:
    problem(http.get("/admin/sessions/nobody/export"), 404)
    untaught = new_session()
    ask(http, untaught)
    assert "untaught" in problem(http.get(f"/admin/sessions/{untaught}/export"), 409)["detail"]
    taught = new_session()
    teach(http, taught)
    path = f"/admin/sessions/{taught}/export"
    problem(http.get(path, params={"adapter_version": 9}), 404)
    problem(http.get(path, params={"adapter_version": 0}), 422)


def test_both_answers_scored_by_both(http: httpx.Client, session: str) -> None:
    untaught = ask(http, session, logprobs=True)
    teach(http, session)
    taught = ask(http, session, logprobs=True)
    before = ok(http.get(f"/admin/sessions/{session}"))
    body = {"prompt": QUESTION, "max_tokens": 20}
    found = ok(http.post(f"/admin/sessions/{session}/compare", json=body))
    assert (found["adapter_version"], found["adapter_used"]) == (1, True)
    assert found["base"]["text"] == untaught["text"]
    assert found["base"]["finish_reason"] == untaught["finish_reason"]
    assert found["session"]["text"] == taught["text"] == ANSWER
    assert found["session"]["finish_reason"] == "stop"
    tokens = found["session"]["tokens"]
    assert [token["id"] for token in tokens] == [token["id"] for token in taught["logprobs"]]
    assert [token["token"] for token in tokens[:-1]] == [
        token["token"] for token in taught["logprobs"][:-1]
    ]
    expected = [token["logprob"] for token in taught["logprobs"]]
    assert [t["session_logprob"] for t in tokens] == pytest.approx(expected, abs=1e-3)
    assert sum(t["base_logprob"] for t in tokens) < sum(t["session_logprob"] for t in tokens)
    assert ok(http.get(f"/admin/sessions/{session}")) == before, "nothing is kept"


class Watched:
    """A server's answering that knows how many answers are under way."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self.asked = self.open = self.most = 0

    async def answer(self, *question: Any) -> AsyncGenerator[Any, None]:
        self.asked += 1
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            async with aclosing(self._answering.answer(*question)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self.open -= 1


def test_what_does_not_wait_for_each_other_is_asked_at_once(
    live: LiveServer, http: httpx.Client, session: str
) -> None:
    teach(http, session)

    def compared(version: int | None) -> tuple[Watched, Comparison]:
        watched = Watched(live.runtime.answering)
        turns = [{"role": "user", "content": QUESTION}]
        asked = compare(cast(Answering, watched), "default", session, turns, 20, version)
        return watched, live.call(asked)

    watched, found = compared(1)
    assert found.session.text == ANSWER != found.base.text
    assert (watched.asked, watched.most, watched.open) == (6, 4, 0)
    watched, found = compared(0)
    assert found.session == found.base
    assert (watched.asked, watched.most, watched.open) == (4, 2, 0), "one text is scored once"


def test_one_refusal_ends_what_was_asked_with_it(
    live: LiveServer, http: httpx.Client, session: str
) -> None:
    teach(http, session)
    watched = Watched(live.runtime.answering)
    turns = [{"role": "user", "content": QUESTION}]
    with pytest.raises(VersionNotFound):
        live.call(compare(cast(Answering, watched), "default", session, turns, 150, 9))
    assert (watched.asked, watched.open) == (2, 0)


def test_the_houses_part_in_an_answer_is_told(live: LiveServer, session: str) -> None:
    operator = {"Authorization": "Bearer operator-key", "X-Tenant": "compared"}
    with live.client(1, headers=operator) as client:
        ok(client.post("/house/adapt", json={"examples": EXAMPLES}))
        told = ask(client, session, logprobs=True)
        path, body = f"/admin/sessions/{session}/compare", {"prompt": QUESTION, "max_tokens": 20}
        found = ok(client.post(path, json=body))
        assert (found["adapter_version"], found["house_version"]) == (0, 1)
        assert found["session"]["text"] == told["text"] == ANSWER != found["base"]["text"]
        assert scores(found) == pytest.approx(logprobs(told), abs=1e-3)
        teach(client, session, [{"prompt": "Hello", "completion": "Hi."}])
        found = ok(client.post(path, json=body | {"prompt": "Hello"}))
        assert (found["adapter_version"], found["house_version"]) == (1, 1)
        assert found["session"]["text"] == "Hi."


def test_a_shown_prompt_is_the_same_for_answer_and_scores(
    model_folder: Path, tmp_path: Path
) -> None:
    settings = make_settings(model_folder, tmp_path / "data", in_context=8)
    with LiveServer(settings) as server, server.client() as client:
        teach(client, "s")
        both = ask(client, "s")["usage"]["prompt_tokens"]
        room = 193 - both  # of the context; one item fewer is shown then
        told = ask(client, "s", max_tokens=room)
        body = {"prompt": QUESTION, "max_tokens": room}
        found = ok(client.post("/admin/sessions/s/compare", json=body))
        (item,) = found["in_context"]
        earlier = EXAMPLES[item - 1]
        chat = [("user", earlier["prompt"]), ("assistant", earlier["completion"])]
        chat.append(("user", QUESTION))
        sent = {
            "session_id": "s",
            "messages": [{"role": role, "content": text} for role, text in chat],
            "choices": [told["text"]],
            "in_context": 0,
            "logprobs": True,
        }
        scored = ok(client.post("/generate", json=sent))
    assert told["in_context"] == [item]
    assert found["session"]["text"] == told["text"]
    assert scores(found) == pytest.approx(logprobs(scored), abs=1e-3)


def scores(found: dict[str, Any]) -> list[float]:
    return [token["session_logprob"] for token in found["session"]["tokens"]]


def logprobs(told: dict[str, Any]) -> list[float]:
    return [token["logprob"] for token in told["logprobs"]]


def test_an_older_version_and_an_untaught_session_are_compared(
    http: httpx.Client, session: str
) -> None:
    teach(http, session)
    teach(http, session, [{"prompt": QUESTION, "completion": "Look at the barn."}])
    path, body = f"/admin/sessions/{session}/compare", {"prompt": QUESTION, "max_tokens": 20}
    old = ok(http.post(path, json={**body, "adapter_version": 1}))
    assert (old["adapter_version"], old["session"]["text"]) == (1, ANSWER)
    none = ok(http.post(path, json={**body, "adapter_version": 0}))
    assert none["session"] == none["base"]
    assert none["adapter_used"] is False


def test_an_answer_cut_off_at_the_contexts_end_is_shown_without_scores(
    http: httpx.Client, session: str
) -> None:
    answer = ask(http, session, max_tokens=1)
    room = 192 - answer["usage"]["prompt_tokens"]
    body = {"prompt": QUESTION, "max_tokens": room}
    found = ok(http.post(f"/admin/sessions/{session}/compare", json=body))
    for side in (found["base"], found["session"]):
        if side["finish_reason"] == "stop":
            assert side["tokens"]
        assert side["text"]
    long = {"prompt": "where is it " * 40, "max_tokens": 3}
    tokens = ask(http, session, long["prompt"], max_tokens=1)["usage"]["prompt_tokens"]
    found = ok(
        http.post(f"/admin/sessions/{session}/compare", json={**long, "max_tokens": 192 - tokens})
    )
    cut = [side for side in (found["base"], found["session"]) if side["finish_reason"] == "length"]
    assert cut, "else this shows nothing"
    assert all(side["text"] and not side["tokens"] for side in cut)


def test_what_peft_cannot_express_is_a_conflict() -> None:
    assert to_problem(PeftFormatError("no header")).status == 409


def test_what_cannot_be_compared(http: httpx.Client, session: str) -> None:
    ask(http, session)
    path = f"/admin/sessions/{session}/compare"
    problem(http.post("/admin/sessions/nobody/compare", json={"prompt": "Hi"}), 404)
    problem(http.post(path, json={"prompt": "Hi", "adapter_version": 3}), 404)
    for body, where in (
        ({}, ""),
        ({"prompt": "Hi", "colour": 1}, "colour"),
        ({"prompt": "Hi", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a b c " * 200}, "prompt"),
        ({"prompt": "Hi", "max_tokens": 4000}, "prompt"),
        ({"prompt": "<|end|>"}, "prompt"),
    ):
        document = problem(http.post(path, json=body), 422)
        assert [error["path"] for error in document["errors"]] == [where]


def test_only_operators_look_in(live: LiveServer, session: str) -> None:
    with live.client(1, headers={"Authorization": "Bearer acme-key"}) as client:
        client.post("/adapt", json={"session_id": session, "examples": EXAMPLES})
        problem(client.get(f"/admin/sessions/{session}/export"), 403)
        problem(client.post(f"/admin/sessions/{session}/compare", json={"prompt": "Hi"}), 403)
    operator = {"Authorization": "Bearer operator-key", "X-Tenant": "acme"}
    with live.client(1, headers=operator) as client:
        assert client.get(f"/admin/sessions/{session}/export").status_code == 200
