"""/v1, driven by the unmodified `openai` client."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import openai
import pytest
from api_calls import ANSWER, QUESTION, ask, events, ok, problem, teach
from server_harness import LiveServer
from starlette.requests import Request

from server.api.problems import Problem
from server.api.streams import event, respond

MODEL = "tiny-test"
CHAT: Any = [{"role": "user", "content": QUESTION}]
NEUTRAL = {
    "tools": [],
    "tool_choice": "none",
    "parallel_tool_calls": True,
    "functions": [],
    "function_call": "none",
    "logit_bias": {},
    "metadata": {"run": "7"},
    "service_tier": "auto",
    "reasoning_effort": None,
    "modalities": ["text"],
    "safety_identifier": "somebody",
    "prompt_cache_key": "shop",
}


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "innerloop"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4'"):
        client.models.retrieve("gpt-4")


def test_chat_of_a_taught_session(client: openai.OpenAI, http: httpx.Client, session: str) -> None:
    teach(http, session)
    by_header = client.chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=20, extra_headers={"X-Session-ID": session}
    )
    assert by_header.choices[0].message.content == ANSWER
    assert by_header.choices[0].finish_reason == "stop"
    assert by_header.usage is not None
    assert by_header.usage.total_tokens > by_header.usage.completion_tokens > 1
    by_field = client.chat.completions.create(
        model=MODEL, messages=CHAT, max_completion_tokens=20, extra_body={"session_id": session}
    )
    assert by_field.choices[0].message.content == ANSWER
    assert by_field.model_extra is not None
    assert by_field.model_extra["adapter_version"] == 1
    without = client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=20)
    assert without.choices[0].message.content != ANSWER


def test_stream(client: openai.OpenAI, http: httpx.Client, session: str) -> None:
    teach(http, session)
    stream = client.chat.completions.create(
        model=MODEL,
        messages=CHAT,
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"X-Session-ID": session},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == ANSWER
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 1
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream_as_it_is_sent(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": CHAT, "max_tokens": 3, "stream": True}
    found = events(http.post("/v1/chat/completions", json=body).text)
    assert found[-1] == (None, "[DONE]")
    assert all(name is None for name, _ in found)
    assert all("usage" not in data for _, data in found[:-1])


def test_async_client(live: LiveServer, http: httpx.Client, session: str) -> None:
    teach(http, session)

    async def chat() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=live.urls[0] + "/v1", api_key="unused") as made:
            answers = await asyncio.gather(
                *(
                    made.chat.completions.create(
                        model=MODEL,
                        messages=CHAT,
                        max_tokens=20,
                        extra_headers={"X-Session-ID": session},
                    )
                    for _ in range(4)
                )
            )
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(chat()) == [ANSWER] * 4


def test_completion_takes_feedback(client: openai.OpenAI, http: httpx.Client, session: str) -> None:
    made = client.chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=4, extra_headers={"X-Session-ID": session}
    )
    ok(http.post("/feedback", json={"completion_id": made.id, "correction": ANSWER}))
    assert ask(http, session)["text"] == ANSWER
    bare = client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=4)
    problem(http.post("/feedback", json={"completion_id": bare.id, "correction": "No."}), 404)


def test_logprobs_and_parts(client: openai.OpenAI, http: httpx.Client, session: str) -> None:
    teach(http, session)
    made = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
        ],
        max_tokens=5,
        logprobs=True,
        temperature=0.5,
        seed=-3,
        stop=["\n"],
        n=1,
        frequency_penalty=0,
        user="somebody",
        extra_headers={"X-Session-ID": session},
    )
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert 1 <= len(logprobs.content) <= 5
    assert all(token.logprob <= 0 for token in logprobs.content)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"n": 9}, "n"),
        ({"n": 0}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"session_id": "a b"}, "session_id"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages"),
        ({"messages": [{"role": "user", "content": "<|end|>"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "parcel " * 200}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
        ),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    http: httpx.Client, fields: dict[str, Any], name: str
) -> None:
    body = {"model": MODEL, "messages": CHAT, **fields}
    document = problem(http.post("/v1/chat/completions", json=body), 422)
    assert name in [error["path"] for error in document["errors"]], document
    # Where OpenAI's clients look for it.
    assert document["error"]["message"] == document["detail"]
    assert document["error"]["code"] == "invalid"


@pytest.mark.parametrize(
    "fields",
    [
        dict.fromkeys(NEUTRAL),
        NEUTRAL,
        {"service_tier": "default", "parallel_tool_calls": False},
    ],
)
def test_what_changes_nothing_is_taken(http: httpx.Client, fields: dict[str, Any]) -> None:
    body = {"model": MODEL, "messages": CHAT, "max_tokens": 2, **fields}
    ok(http.post("/v1/chat/completions", json=body))


def test_a_field_that_is_not_supported_is_told_from_one_that_is_none(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": CHAT, "tools": [{}], "colour": "red"}
    errors = problem(http.post("/v1/chat/completions", json=body), 422)["errors"]
    said = {error["path"]: error["message"] for error in errors}
    assert said["tools"].endswith("not supported: leave it out, or send null or []")
    assert said["colour"] == "there is no such field"


def test_contradictions(http: httpx.Client, session: str) -> None:
    body = {"model": MODEL, "messages": CHAT, "session_id": session}
    response = http.post("/v1/chat/completions", json=body, headers={"X-Session-ID": "other"})
    problem(response, 422)
    problem(http.post("/v1/chat/completions", json={**body, "model": "gpt-4"}), 404)
    problem(http.post("/v1/chat/completions", json={**body, "stream_options": {}}), 422)
    both = {**body, "max_tokens": 3, "max_completion_tokens": 3}
    problem(http.post("/v1/chat/completions", json=both), 422)
    problem(http.post("/v1/chat/completions", json={**body, "top_logprobs": 3}), 422)


def test_the_client_sees_our_words(client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.chat.completions.create(model=MODEL, messages=CHAT, n=9)
    assert caught.value.code == "invalid"
    assert caught.value.param == "n"


def test_an_answer_is_sent_back_as_it_came(client: openai.OpenAI, http: httpx.Client) -> None:
    first = client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=4)
    again = {"role": "user", "content": "And then?", "name": "ann"}
    for said in (first.choices[0].message, first.choices[0].message.model_dump()):
        turns: Any = [*CHAT, said, again]
        client.chat.completions.create(model=MODEL, messages=turns, max_tokens=4)
    said = {**first.choices[0].message.model_dump(), "tool_calls": [{"id": "x"}]}
    body = {"model": MODEL, "messages": [*CHAT, said, again]}
    assert "tool_calls" in problem(http.post("/v1/chat/completions", json=body), 422)["detail"]


def test_an_error_ends_a_stream_as_one() -> None:
    """OpenAI's clients raise where a piece has `error`; without it the text counts as whole."""

    async def broken() -> AsyncGenerator[str, None]:
        yield event({"choices": []})
        raise Problem("unavailable", "Redis is away")

    async def sent(path: str) -> dict[str, Any]:
        async def stay() -> Any:
            await asyncio.Event().wait()

        request = Request({"type": "http", "path": path, "headers": []}, stay)
        parts = [part async for part in (await respond(request, broken())).body_iterator]
        return dict(json.loads(str(parts[-1]).split("data: ")[1]))

    for path in ("/v1/completions", "/v1/chat/completions"):
        assert asyncio.run(sent(path))["error"]["message"] == "Redis is away"
    assert "error" not in asyncio.run(sent("/generate"))
