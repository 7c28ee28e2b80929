"""/v1/completions, and several choices and their log-probabilities on both faces."""

import asyncio
import json
import math
from typing import Any

import httpx
import openai
import pytest
from api_calls import ANSWER, QUESTION, ask, events, ok, problem, teach
from redis_process import until
from server_harness import LiveServer

MODEL = "tiny-test"
CHAT: Any = [{"role": "user", "content": QUESTION}]
TEXT = "Once upon a"


def test_text_goes_on_from_the_prompt(client: openai.OpenAI, live: LiveServer) -> None:
    made = client.completions.create(model=MODEL, prompt=TEXT, max_tokens=6)
    assert made.object == "text_completion"
    assert made.usage is not None
    assert made.usage.completion_tokens == 6
    # Put together, prompt and answer read as the tokens do: the space between them is there.
    encoder = live.runtime.encoding._encoder
    logprobs = client.completions.create(model=MODEL, prompt=TEXT, max_tokens=6, logprobs=0)
    table = logprobs.choices[0].logprobs
    assert table is not None
    assert table.tokens is not None
    assert "".join(table.tokens) == made.choices[0].text
    ids = encoder.raw(TEXT).ids
    assert made.usage.prompt_tokens == len(ids)
    listed = client.completions.create(model=MODEL, prompt=[TEXT], max_tokens=6)
    assert listed.choices[0].text == made.choices[0].text
    assert listed.choices[0].finish_reason == "length"


def test_sixteen_tokens_unless_said(client: openai.OpenAI) -> None:
    made = client.completions.create(model=MODEL, prompt=TEXT, temperature=1, seed=3)
    assert made.usage is not None
    assert made.usage.completion_tokens <= 16
    assert (made.choices[0].finish_reason == "length") == (made.usage.completion_tokens == 16)


def test_echo_and_stream(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt=TEXT, max_tokens=6, echo=True)
    assert whole.choices[0].text.startswith(TEXT)
    chunks = list(
        client.completions.create(
            model=MODEL,
            prompt=TEXT,
            max_tokens=6,
            echo=True,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == (
        whole.choices[0].text
    )
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert len({chunk.id for chunk in chunks}) == 1


def test_logprobs_of_texts(client: openai.OpenAI) -> None:
    made = client.completions.create(model=MODEL, prompt=TEXT, max_tokens=5, logprobs=3)
    table = made.choices[0].logprobs
    assert table is not None
    assert table.tokens is not None
    assert table.token_logprobs is not None
    assert table.top_logprobs is not None
    assert table.text_offset is not None
    assert len(table.tokens) == len(table.token_logprobs) == len(table.top_logprobs) == 5
    assert table.text_offset[0] == len(TEXT)
    assert table.text_offset[1] == len(TEXT) + len(table.tokens[0])
    for token, logprob, top in zip(
        table.tokens, table.token_logprobs, table.top_logprobs, strict=True
    ):
        assert len(top) <= 3
        assert top[token] == logprob == max(top.values())  # greedy
    streamed = client.completions.create(
        model=MODEL, prompt=TEXT, max_tokens=5, logprobs=3, stream=True
    )
    offsets: list[int] = []
    for chunk in streamed:
        found = chunk.choices[0].logprobs if chunk.choices else None
        offsets += [] if found is None else found.text_offset or []
    assert offsets == table.text_offset


def test_session_by_header_and_field_with_feedback(
    client: openai.OpenAI, http: httpx.Client, session: str
) -> None:
    made = client.completions.create(
        model=MODEL, prompt=TEXT, max_tokens=8, extra_headers={"X-Session-ID": session}
    )
    wanted = " finch follows the parcel."
    taught = ok(http.post("/feedback", json={"completion_id": made.id, "correction": wanted}))
    assert taught["accepted"]
    again = client.completions.create(
        model=MODEL, prompt=TEXT, max_tokens=20, extra_body={"session_id": session}
    )
    assert again.choices[0].text == wanted
    assert again.choices[0].finish_reason == "stop"
    assert again.model_extra is not None
    assert again.model_extra["adapter_version"] == 1
    # The same words in a chat are another prompt: nothing of the text's is superseded.
    chat = ask(http, session, TEXT)
    corrected = {"completion_id": chat["id"], "correction": ANSWER, "adapt": False}
    ok(http.post("/feedback", json=corrected), 202)
    items = ok(http.get(f"/sessions/{session}/feedback"))["items"]
    assert [item["status"] for item in items] == ["applied", "pending"]
    bare = client.completions.create(model=MODEL, prompt=TEXT, max_tokens=8)
    problem(http.post("/feedback", json={"completion_id": bare.id, "rating": 1}), 404)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"prompt": [[1, 2, 3]]}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "<|end|>"}, "prompt"),
        ({"prompt": "parcel " * 300}, "prompt"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"echo": True, "logprobs": 1}, ""),
    ],
)
def test_texts_that_are_refused_by_name(
    http: httpx.Client, fields: dict[str, Any], name: str
) -> None:
    body = {"model": MODEL, "prompt": TEXT, **fields}
    document = problem(http.post("/v1/completions", json=body), 422)
    assert name in [error["path"] for error in document["errors"]], document
    assert document["error"]["code"] == "invalid"


def test_choices_are_drawn_apart(client: openai.OpenAI, live: LiveServer) -> None:
    ids = live.runtime.encoding._encoder.raw(TEXT).ids

    def texts(n: int, **fields: Any) -> list[str]:
        made = client.completions.create(
            model=MODEL, prompt=TEXT, max_tokens=8, temperature=1, n=n, **fields
        )
        assert [choice.index for choice in made.choices] == list(range(n))
        assert made.usage is not None
        assert made.usage.completion_tokens <= n * 8
        assert made.usage.completion_tokens > n
        assert made.usage.prompt_tokens == len(ids)
        return [choice.text for choice in made.choices]

    four = texts(4, seed=7)
    assert len(set(four)) > 1
    assert four == texts(4, seed=7)
    assert four[:1] == texts(1, seed=7)  # asking for more changes none of them
    assert len(set(texts(4))) > 1
    chat = client.chat.completions.create(model=MODEL, messages=CHAT, n=3, max_tokens=6)
    assert len({choice.message.content for choice in chat.choices}) == 1  # greedy


def test_choices_in_a_stream(client: openai.OpenAI, session: str) -> None:
    fields: dict[str, Any] = {
        "model": MODEL,
        "messages": CHAT,
        "max_tokens": 8,
        "n": 3,
        "temperature": 1,
        "seed": 5,
        "logprobs": True,
        "top_logprobs": 2,
        "extra_headers": {"X-Session-ID": session},
    }
    whole = client.chat.completions.create(**fields)
    texts, ends, roles, usage, tokens = ["", "", ""], [""] * 3, [0] * 3, None, [0] * 3
    for chunk in client.chat.completions.create(
        **fields, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role == "assistant"
            ends[choice.index] += choice.finish_reason or ""
            tokens[choice.index] += len((choice.logprobs and choice.logprobs.content) or ())
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert roles == [1, 1, 1]
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens == sum(tokens)


def test_each_choice_takes_feedback(
    client: openai.OpenAI, http: httpx.Client, session: str
) -> None:
    made = client.chat.completions.create(
        model=MODEL,
        messages=CHAT,
        n=3,
        temperature=1,
        seed=1,  # what a correction replaces is in its loss: other words, another answer learned
        max_tokens=6,
        extra_headers={"X-Session-ID": session},
    )
    ids = [(choice.model_extra or {})["completion_id"] for choice in made.choices]
    assert ids[0] == made.id
    assert len(set(ids)) == 3
    for choice, named in zip(made.choices, ids, strict=True):
        ok(http.post("/feedback", json={"completion_id": named, "rating": -1, "adapt": False}), 202)
        items = ok(http.get(f"/sessions/{session}/feedback"))["items"]
        assert items[-1]["completion"] == choice.message.content
    sent = {"completion_id": ids[2], "correction": ANSWER}
    assert ok(http.post("/feedback", json=sent))["accepted"]
    items = ok(http.get(f"/sessions/{session}/feedback"))["items"]
    assert [item["status"] for item in items] == ["superseded"] * 3 + ["applied"]
    assert items[-1]["rejected"] == made.choices[2].message.content
    assert ask(http, session)["text"] == ANSWER


def test_choices_are_cancelled_together(live: LiveServer, http: httpx.Client) -> None:
    def engine() -> dict[str, Any]:
        return ok(http.get("/admin/engine"))

    before = engine()["requests_cancelled"]
    body = {"model": MODEL, "prompt": TEXT, "max_tokens": 150, "n": 4, "stream": True}
    for _ in range(200):  # the whole answer may be written before the server hears of it
        with http.stream("POST", "/v1/completions", json=body | {"temperature": 2}) as response:
            next(response.iter_lines())
        until(lambda: not any(engine()[name] for name in ("waiting", "prefilling", "decoding")))
        if engine()["requests_cancelled"] > before:
            return
    pytest.fail("nothing was cancelled")


def test_top_logprobs_of_chats(client: openai.OpenAI, http: httpx.Client, session: str) -> None:
    teach(http, session)
    made = client.chat.completions.create(
        model=MODEL,
        messages=CHAT,
        max_tokens=20,
        logprobs=True,
        top_logprobs=20,
        extra_headers={"X-Session-ID": session},
    )
    table = made.choices[0].logprobs
    assert table is not None
    assert table.content is not None
    assert made.usage is not None
    assert len(table.content) == made.usage.completion_tokens
    for token in table.content:
        values = [likely.logprob for likely in token.top_logprobs]
        assert len(values) == 20
        assert values == sorted(values, reverse=True)
        assert token.logprob == values[0]  # greedy
        assert token.token == token.top_logprobs[0].token
        assert 0 < sum(map(math.exp, values)) <= 1 + 1e-5
    none = client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=2, logprobs=True)
    assert none.choices[0].logprobs is not None
    assert none.choices[0].logprobs.content is not None
    assert none.choices[0].logprobs.content[0].top_logprobs == []


def test_async_client_streams_texts(live: LiveServer) -> None:
    async def texts() -> list[str]:
        async with openai.AsyncOpenAI(base_url=live.urls[0] + "/v1", api_key="unused") as made:

            async def one(seed: int) -> str:
                stream = await made.completions.create(
                    model=MODEL, prompt=TEXT, max_tokens=6, temperature=1, seed=seed, stream=True
                )
                return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])

            return list(await asyncio.gather(*(one(seed) for seed in (1, 2, 1))))

    first, second, third = asyncio.run(texts())
    assert first == third != second


def test_a_stream_of_texts_as_it_is_sent(http: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": TEXT, "max_tokens": 3, "stream": True}
    found = events(http.post("/v1/completions", json=body).text)
    assert found[-1] == (None, "[DONE]")
    assert {json.dumps(sorted(data)) for _, data in found[:-2]} == {
        json.dumps(["choices", "created", "id", "model", "object", "system_fingerprint"])
    }
