"""LangChain's ChatOpenAI and OpenAI, unmodified, against a live server."""

import asyncio
from typing import Any, Literal

import httpx
import pydantic
import pytest
from api_calls import ANSWER, QUESTION, ok, teach
from server_harness import LiveServer

langchain = pytest.importorskip(
    "langchain_openai", reason="langchain-openai is not installed: CONTRIBUTING.md says how"
)
MODEL = "tiny-test"


class Place(pydantic.BaseModel):
    """Where it is."""

    where: Literal["shop", "road"]
    sure: bool


@pytest.fixture(autouse=True)
def no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGSMITH_TRACING", "false")


def chat(live: LiveServer, session: str, **fields: Any) -> Any:
    return langchain.ChatOpenAI(
        model=MODEL,
        base_url=live.urls[0] + "/v1",
        api_key="unused",
        max_retries=0,
        default_headers={"X-Session-ID": session},
        **{"max_tokens": 40, **fields},
    )


def test_a_taught_session_answers(live: LiveServer, http: httpx.Client, session: str) -> None:
    teach(http, session)
    model = chat(live, session)
    told = model.invoke([("system", "Be brief."), ("user", QUESTION)])
    assert told.usage_metadata["output_tokens"] > 1
    plain = model.invoke(QUESTION)
    assert plain.content == ANSWER
    assert plain.response_metadata["finish_reason"] == "stop"
    # What LangChain calls the response's id is what feedback names.
    ok(http.post("/feedback", json={"completion_id": plain.response_metadata["id"], "rating": 1}))
    assert "".join(chunk.content for chunk in model.stream(QUESTION)) == ANSWER
    found = asyncio.run(model.abatch([QUESTION, QUESTION]))
    assert [one.content for one in found] == [ANSWER, ANSWER]


def test_choices_logprobs_and_structured_output(live: LiveServer, session: str) -> None:
    from langchain_core.messages import HumanMessage

    model = chat(live, session, n=3, temperature=1.0, max_tokens=5)
    result = model.generate([[HumanMessage(QUESTION)]])
    assert len(result.generations[0]) == 3
    told = chat(live, session, logprobs=True, top_logprobs=2, max_tokens=3).invoke(QUESTION)
    assert all(
        len(token["top_logprobs"]) == 2 for token in told.response_metadata["logprobs"]["content"]
    )
    structured = chat(live, session).with_structured_output(Place, method="json_schema")
    assert isinstance(structured.invoke(QUESTION), Place)


def test_texts(live: LiveServer, session: str) -> None:
    model = langchain.OpenAI(
        model=MODEL,
        base_url=live.urls[0] + "/v1",
        api_key="unused",
        max_tokens=5,
        temperature=0,
        frequency_penalty=0,
        default_headers={"X-Session-ID": session},
    )
    assert model.invoke("Once upon a") == "".join(model.stream("Once upon a"))
