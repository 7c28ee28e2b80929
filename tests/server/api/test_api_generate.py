"""POST /generate: plain and streamed, taught and untaught, and what a client may ask for."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from api_calls import ANSWER, EXAMPLES, QUESTION, ask, events, ok, problem, teach
from server_harness import LiveServer


def test_untaught_session_starts_on_first_use(http: httpx.Client, session: str) -> None:
    problem(http.get(f"/sessions/{session}"), 404)
    answer = ask(http, session)
    assert answer["adapter_version"] == 0
    assert answer["session_id"] == session
    assert answer["finish_reason"] in ("stop", "length")
    usage = answer["usage"]
    assert 1 <= usage["completion_tokens"] <= 20
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert ok(http.get(f"/sessions/{session}"))["adapter_version"] == 0


def test_taught_answer_and_the_version_it_came_from(http: httpx.Client, session: str) -> None:
    before = ask(http, session)
    teach(http, session)
    after = ask(http, session)
    assert after["text"] == ANSWER
    assert after["finish_reason"] == "stop"
    assert after["adapter_version"] == 1
    untaught = ask(http, session, adapter_version=0)
    assert untaught["text"] == before["text"]
    assert untaught["adapter_version"] == 0
    problem(
        http.post("/generate", json={"session_id": session, "prompt": "x", "adapter_version": 9}),
        404,
    )


def test_the_header_names_the_session_as_the_body_does(http: httpx.Client, session: str) -> None:
    named, other = {"X-Session-ID": session}, {"X-Session-ID": "another"}
    told = ok(http.post("/adapt", json={"examples": EXAMPLES}, headers=named))
    assert told["session_id"] == session
    answer = ok(http.post("/generate", json={"prompt": QUESTION, "max_tokens": 20}, headers=named))
    assert (answer["session_id"], answer["text"]) == (session, ANSWER)
    rated = {"completion_id": answer["id"], "rating": 1}
    for path, body in (
        ("/generate", {"session_id": session, "prompt": QUESTION}),
        ("/adapt", {"session_id": session, "examples": EXAMPLES}),
        ("/feedback", rated),
    ):
        assert "X-Session-ID" in problem(http.post(path, json=body, headers=other), 422)["detail"]
    assert ok(http.post("/feedback", json=rated, headers=named))["session_id"] == session
    assert ok(http.get(f"/sessions/{session}"))["items"] == 3


def test_old_versions_still_answer(http: httpx.Client, session: str) -> None:
    teach(http, session)
    teach(http, session, [{"prompt": QUESTION, "completion": "Look at the barn."}])
    assert ask(http, session)["adapter_version"] == 2
    old = ask(http, session, adapter_version=1)
    assert (old["text"], old["adapter_version"]) == (ANSWER, 1)


def test_stream_ends_with_the_plain_answer(http: httpx.Client, session: str) -> None:
    teach(http, session)
    plain = ask(http, session)
    body = {"session_id": session, "prompt": QUESTION, "max_tokens": 20, "stream": True}
    response = http.post("/generate", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    found = events(response.text)
    names = [name for name, _ in found]
    assert names == ["delta"] * (len(found) - 1) + ["done"]
    assert len(found) > 2
    last = found[-1][1]
    assert "".join(data["text"] for _, data in found[:-1]) == last["text"] == plain["text"]
    ignored = {"id", "usage"}
    assert {k: v for k, v in last.items() if k not in ignored} == {
        k: v for k, v in plain.items() if k not in ignored
    }


def test_messages_and_prompt_mean_the_same(http: httpx.Client, session: str) -> None:
    chat = {
        "session_id": session,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 20,
    }
    assert ok(http.post("/generate", json=chat))["text"] == ask(http, session)["text"]
    longer = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hello"},
        *chat["messages"],  # type: ignore[misc]
    ]
    answer = ok(http.post("/generate", json={**chat, "messages": longer}))
    assert answer["usage"]["prompt_tokens"] > 30


def test_sampling_repeats_with_its_seed(http: httpx.Client, session: str) -> None:
    options = {"temperature": 1.5, "top_p": 0.95, "top_k": 50}
    one = ask(http, session, seed=7, **options)
    assert ask(http, session, seed=7, **options)["text"] == one["text"]
    others = {ask(http, session, seed=seed, **options)["text"] for seed in range(8, 12)}
    assert others != {one["text"]}


def test_stop_and_max_tokens(http: httpx.Client, session: str) -> None:
    teach(http, session)
    assert ask(http, session, stop="small")["text"] == "Follow the "
    assert ask(http, session, stop=["finch", "the"])["text"] == "Follow "
    assert ask(http, session, min_tokens=25, max_tokens=25)["usage"]["completion_tokens"] == 25
    short = ask(http, session, max_tokens=1)
    assert short["finish_reason"] == "length"
    assert short["usage"]["completion_tokens"] == 1


def test_choices(http: httpx.Client, session: str) -> None:
    choices = ["Follow the small finch.", "No idea at all."]
    teach(http, session)
    answer = ask(http, session, choices=choices)
    assert answer["text"] == ANSWER
    assert set(answer["choice_logprobs"]) == set(choices)
    assert all(value <= 0 for value in answer["choice_logprobs"].values())
    assert answer["choice_logprobs"][ANSWER] == max(answer["choice_logprobs"].values())


def test_logprobs(http: httpx.Client, session: str) -> None:
    teach(http, session)
    answer = ask(http, session, logprobs=True)
    tokens = answer["logprobs"]
    assert len(tokens) == answer["usage"]["completion_tokens"]
    assert all(token["logprob"] <= 0 and math.isfinite(token["logprob"]) for token in tokens)
    assert "".join(token["token"] for token in tokens).strip().startswith(ANSWER)
    assert "logprobs" not in ask(http, session)


def test_default_length_fits_the_context(http: httpx.Client, session: str) -> None:
    words = "where is my parcel " * 20
    answer = ok(http.post("/generate", json={"session_id": session, "prompt": words}))
    usage = answer["usage"]
    assert usage["prompt_tokens"] > 192 - 128
    assert usage["total_tokens"] <= 192


def test_sessions_answer_at_the_same_time(
    http: httpx.Client, new_session: Callable[[], str]
) -> None:
    """Many at once give what each gives alone, and nobody's teaching reaches another."""
    taught = {new_session(): f"Ask {name}." for name in ("Maud", "Tobias", "the finch", "us")}
    bare = new_session()
    untaught = ask(http, bare)["text"]
    with ThreadPoolExecutor(8) as pool:
        reports = pool.map(
            lambda item: teach(http, item[0], [{"prompt": QUESTION, "completion": item[1]}]),
            taught.items(),
        )
        assert all(report["accepted"] for report in reports)
        asked = [*taught, bare] * 3
        answers = list(pool.map(lambda name: ask(http, name), asked))
    for name, answer in zip(asked, answers, strict=True):
        assert answer["text"] == taught.get(name, untaught)


def test_a_client_that_leaves_frees_its_place(live: LiveServer, session: str) -> None:
    body = {"session_id": session, "prompt": QUESTION, "max_tokens": 150, "stream": True}
    cancelled = live.runtime.engine.status().requests_cancelled
    with live.client() as http:
        for seed in range(200):  # a sampled answer may be over before its client leaves
            drawn = {**body, "temperature": 1.0, "seed": seed}
            with http.stream("POST", "/generate", json=drawn) as response:
                next(response.iter_lines())
            for _ in range(20):
                if live.runtime.engine.status().requests_cancelled > cancelled:
                    return
                ask(http, session, max_tokens=1)
    pytest.fail("no client that left was counted")
