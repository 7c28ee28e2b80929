"""`response_format`: answers held to JSON and to JSON schemas."""

import json
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pydantic
import pytest
from api_calls import ANSWER, QUESTION, ask, ok, problem, teach
from server_harness import LiveServer

MODEL = "tiny-test"
CHAT: Any = [{"role": "user", "content": QUESTION}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "place": {"enum": ["shop", "road", "door"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 60},
        "sure": {"type": "boolean"},
    },
    "required": ["place", "days", "sure"],
    "additionalProperties": False,
}


def named(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "where", "schema": schema}}


def test_every_answer_fits_the_schema(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model=MODEL,
        messages=CHAT,
        response_format=named(SCHEMA),  # type: ignore[arg-type]
        max_tokens=60,
        n=6,
        temperature=1.5,
        top_p=0.9,
        seed=1,
    )
    found = [json.loads(choice.message.content or "") for choice in made.choices]
    for answer, choice in zip(found, made.choices, strict=True):
        jsonschema.validate(answer, SCHEMA)
        assert choice.finish_reason == "stop"
    assert len({json.dumps(answer) for answer in found}) > 1


def test_pydantic_models_are_parsed(client: openai.OpenAI) -> None:
    class Place(pydantic.BaseModel):
        where: Literal["shop", "road"]
        days: list[Literal[1, 2, 3]] = pydantic.Field(max_length=2)

    made = client.chat.completions.parse(
        model=MODEL, messages=CHAT, response_format=Place, max_tokens=60
    )
    parsed = made.choices[0].message.parsed
    assert parsed is not None
    assert parsed.where in ("shop", "road")
    with client.chat.completions.stream(
        model=MODEL, messages=CHAT, response_format=Place, max_tokens=60
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == parsed


def test_any_object_and_a_cut_one(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": MODEL,
        "messages": CHAT,
        "response_format": {"type": "json_object"},
        "temperature": 1,
        "seed": 2,
    }
    made = client.chat.completions.create(**fields, n=3, max_tokens=40)
    for choice in made.choices:
        text = choice.message.content or ""
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(text), dict)
        assert text.startswith("{")
    cut = client.chat.completions.create(**fields, max_tokens=2)
    assert cut.choices[0].finish_reason == "length"
    text = client.chat.completions.create(**fields | {"response_format": {"type": "text"}})
    assert not (text.choices[0].message.content or "").startswith("{")


def test_a_schema_holds_a_taught_session_too(
    client: openai.OpenAI, http: httpx.Client, session: str
) -> None:
    teach(http, session)
    for recall in (True, False):
        answer = ask(http, session, response_format=named(SCHEMA), max_tokens=60, recall=recall)
        jsonschema.validate(json.loads(answer["text"]), SCHEMA)
        assert answer["adapter_version"] == 1
    assert ask(http, session)["text"] == ANSWER
    # A log-probability is the model's own, whatever the schema forbids.
    made = client.chat.completions.create(
        model=MODEL,
        messages=CHAT,
        response_format={"type": "json_object"},
        logprobs=True,
        max_tokens=4,
    )
    assert made.choices[0].logprobs is not None
    assert made.choices[0].logprobs.content is not None
    assert made.choices[0].logprobs.content[0].logprob < -0.1


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "bogus"},
        {"not": {"type": "string"}},
        {"$ref": "https://example.org/schema"},
        {"type": "object", "required": ["a"], "properties": {"a": False}},
        {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"type": "string", "pattern": "("},
        {"allOf": [{"type": "string", "pattern": f"^.*a.{{{k}}}$"} for k in range(30)]},
        {"enum": ["a" * 70_000]},
    ],
)
def test_schemas_that_cannot_be_enforced(
    http: httpx.Client, client: openai.OpenAI, live: LiveServer, schema: dict[str, Any]
) -> None:
    body = {"model": MODEL, "messages": CHAT, "response_format": named(schema)}
    if len(json.dumps(schema)) > 20_000:
        body["stream"] = True
    document = problem(http.post("/v1/chat/completions", json=body), 400)
    assert document["error"]["param"] == "response_format"
    assert document["type"] == "/problems/unsupported"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**body)
    assert caught.value.param == "response_format"


def test_generate_takes_a_format_too(http: httpx.Client, session: str) -> None:
    answer = ask(http, session, response_format=named(SCHEMA), max_tokens=60)
    jsonschema.validate(json.loads(answer["text"]), SCHEMA)
    body = {"session_id": session, "prompt": QUESTION, "response_format": named(SCHEMA)}
    problem(http.post("/generate", json=body | {"choices": ["a", "b"]}), 422)
    problem(http.post("/generate", json=body | {"min_tokens": 3}), 422)
    problem(http.post("/generate", json=body | {"response_format": named({"not": {}})}), 400)
    free = {"response_format": {"type": "text"}, "choices": ["a", "b"]}
    assert ok(http.post("/generate", json=body | free))["text"] in ("a", "b")
