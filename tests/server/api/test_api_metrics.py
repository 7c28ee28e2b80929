"""GET /metrics: what Prometheus reads, and that every name of it is explained."""

import re
from pathlib import Path

import httpx
from api_calls import ask, ok, problem, teach
from prometheus_client.parser import text_string_to_metric_families
from redis_process import until
from server_harness import LiveServer

PAGE = Path(__file__).parents[3] / "docs" / "operating.md"


def read(http: httpx.Client) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    response = http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def grown(
    before: dict[tuple[str, tuple[tuple[str, str], ...]], float],
    after: dict[tuple[str, tuple[tuple[str, str], ...]], float],
    name: str,
    **labels: str,
) -> float:
    key = (name, tuple(sorted(labels.items())))
    return after[key] - before.get(key, 0.0)


def test_requests_and_feedback_are_counted(http: httpx.Client, session: str) -> None:
    before = read(http)
    teach(http, session)
    ask(http, session)
    http.get(f"/sessions/{session}-none")
    http.get("/no/such/route")
    http.request("BREW", "/no/such/route")
    http.request("BREW", "/healthz")
    # The engine counts after it has answered.
    until(lambda: grown(before, read(http), "innerloop_answers_finished_total") >= 1)
    after = read(http)
    for method, route, status in (
        ("POST", "/adapt", "200"),
        ("POST", "/generate", "200"),
        ("GET", "/sessions/{session_id}", "404"),
    ):
        labels = {"method": method, "route": route, "status": status}
        assert grown(before, after, "innerloop_http_request_seconds_count", **labels) == 1
    strange = {"method": "any", "route": "unmatched", "status": "404"}
    assert grown(before, after, "innerloop_http_request_seconds_count", **strange) == 2
    assert grown(before, after, "innerloop_feedback_items_total", outcome="accepted") == 2
    assert grown(before, after, "innerloop_adapt_seconds_count") == 1
    assert grown(before, after, "innerloop_answers_finished_total") >= 1
    assert grown(before, after, "innerloop_generated_tokens_total") >= 1
    assert not any("BREW" in value for _, labels in after for _, value in labels)
    assert after["innerloop_engine_running", ()] == 1
    assert not any(session in value for _, labels in after for _, value in labels)


def test_operators_only(live: LiveServer) -> None:
    with live.client(1) as http:
        problem(http.get("/metrics"), 401)
        client, operator = ({"Authorization": f"Bearer {k}"} for k in ("acme-key", "operator-key"))
        problem(http.get("/metrics", headers=client), 403)
        assert http.get("/metrics", headers=operator).status_code == 200


def test_every_metric_is_explained(http: httpx.Client, session: str) -> None:
    teach(http, session)
    families = text_string_to_metric_families(http.get("/metrics").text)
    served = {f.name + ("_total" if f.type == "counter" else "") for f in families}
    explained = set(re.findall(r"^\| `(innerloop_\w+)`", PAGE.read_text("utf-8"), re.MULTILINE))
    assert served - {name for name in served if name.endswith("_created")} == explained
    assert ok(http.get("/healthz"))["status"] == "ok"
