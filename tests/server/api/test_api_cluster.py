"""A server whose Redis is a Cluster: everything a session and an operator can do, over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from api_calls import ANSWER, EXAMPLES, QUESTION, ask, ok, problem, teach
from redis_process import cluster_url, redis_cluster
from server_harness import LiveServer, make_settings


@pytest.fixture(scope="module")
def spread(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> Iterator[tuple[LiveServer, LiveServer]]:
    """Two servers, of which the second is told of one node only."""
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        settings = [
            make_settings(
                model_folder,
                tmp_path_factory.mktemp("data"),
                redis_url=cluster_url(known),
                operator_keys="operator-key",
                session_requests="1/h:40",
            )
            for known in (nodes, nodes[2:])
        ]
        with LiveServer(settings[0]) as first, LiveServer(settings[1]) as second:
            yield first, second


def enter(live: LiveServer, key: str = "operator-key") -> httpx.Client:
    return live.client(headers={"Authorization": f"Bearer {key}"})


def test_a_session_from_its_making_to_its_deletion(spread: tuple[LiveServer, LiveServer]) -> None:
    with enter(spread[0]) as http, enter(spread[1]) as other:
        told = teach(http, "a")
        assert told["adapter_version"] == 1
        answer = ask(other, "a")
        assert (answer["text"], answer["adapter_version"]) == (ANSWER, 1)
        correction = {"completion_id": answer["id"], "correction": "In the barn."}
        assert ok(other.post("/feedback", json=correction))["adapter_version"] == 2
        keyed = {"Idempotency-Key": "k"}
        body = {"session_id": "a", "examples": [{"prompt": "Who?", "completion": "Jo."}]}
        third = ok(http.post("/adapt", json=body, headers=keyed))
        assert ok(other.post("/adapt", json=body, headers=keyed)) == third
        forked = ok(
            http.post("/sessions", json={"session_id": "b", "fork": {"session_id": "a"}}), 201
        )
        assert forked["session_id"] == "b"
        assert ask(other, "b", "Who?")["text"] == "Jo."
        gone = ok(http.delete(f"/sessions/a/feedback/{third['items'][0]}"))
        assert ok(other.get("/sessions/a"))["adapter_version"] == gone["adapter_version"]
        ok(http.post("/admin/sessions/a/rollback", json={"adapter_version": 1}))
        assert ask(other, "a")["text"] == ANSWER
        ok(http.post("/admin/sessions/a/pin", json={"pinned": True}))
        assert http.delete("/sessions/b").status_code == 204
        listed = ok(other.get("/admin/sessions", params={"limit": 10}))["sessions"]
        assert [one["session_id"] for one in listed] == ["a"]
        assert ok(other.get("/admin/sessions/a"))["versions"]


def test_keys_tokens_rates_audit_and_heartbeats(spread: tuple[LiveServer, LiveServer]) -> None:
    first, second = spread
    with enter(first) as http, enter(second) as other:
        made = ok(http.post("/admin/keys", json={"tenant": "acme", "role": "client"}), 201)
        with enter(second, made["key"]) as client:
            teach(client, "mine", EXAMPLES)
            token = ok(client.post("/sessions/mine/tokens", json={}), 201)["token"]
            with enter(first, token) as browser:
                assert ask(browser, "mine", QUESTION)["text"] == ANSWER
                problem(browser.get("/sessions/other"), 403)
            refused = None
            for _ in range(45):
                response = client.get("/sessions/mine")
                if response.status_code == 429:
                    refused = problem(response, 429)
                    break
            assert refused, "both servers draw from one bucket of 40"
        assert http.delete(f"/admin/keys/{made['id']}").status_code == 204
        with enter(second, made["key"]) as client:
            problem(client.get("/sessions/mine"), 401)
        assert len(ok(other.get("/admin/audit"))["entries"]) >= 2
        text = other.get("/metrics").text + http.get("/metrics").text
        assert "innerloop_replicas 2.0" in text
        assert ok(other.get("/readyz"))
