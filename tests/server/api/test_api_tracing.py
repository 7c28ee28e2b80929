"""What a request is called in logs, and its spans as a collector receives them."""

import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from api_calls import ask, teach
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from server_harness import LiveServer
from stub_server import Stub, stubbed

from server import spans

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Speaks as much of OTLP over HTTP as an exporter asks for."""

    def __init__(self) -> None:
        self.received: list[Any] = []
        self.raw = b""
        self.resources: dict[str, str] = {}
        outer = self

        class Handler(Stub):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.raw += body
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for pair in resource.resource.attributes:
                        outer.resources[pair.key] = pair.value.string_value
                    for scope in resource.scope_spans:
                        outer.received += scope.spans
                self.send_response(200)
                self.end_headers()

        self.handler = Handler


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    opened = Collector()
    with stubbed(opened.handler) as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
        monkeypatch.setenv("OTEL_BSP_EXPORT_TIMEOUT", "600000")
        yield opened


def test_a_request_is_one_tree_of_spans(
    collector: Collector, http: httpx.Client, session: str
) -> None:
    assert spans.wanted()
    end = spans.enable("1.2.3")
    try:
        teach(http, session)
        named = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "traced"}
        body = {"session_id": session, "prompt": "Where is Xylophone?", "max_tokens": 4}
        for stream in (False, True):
            answer = http.post("/generate", json={**body, "stream": stream}, headers=named)
            assert answer.status_code == 200
        http.get("/readyz")
    finally:
        end()
    assert collector.resources["service.name"] == "innerloop"
    assert collector.resources["service.version"] == "1.2.3"
    assert b"Xylophone" not in collector.raw
    roots = {span.name for span in collector.received if not span.parent_span_id}
    assert roots == {"POST /adapt"}, "no probe, and nothing that the server does by itself"
    ours = [span for span in collector.received if span.trace_id.hex() == TRACE]
    requests = [span for span in ours if span.name == "POST /generate"]
    assert [span.parent_span_id.hex() for span in requests] == [PARENT, PARENT]
    for request in requests:
        known = {pair.key: pair.value for pair in request.attributes}
        assert known["innerloop.session_id"].string_value == session
        assert known["innerloop.request_id"].string_value == "traced"
        assert known["http.response.status_code"].int_value == 200
        parts = [span for span in ours if span.parent_span_id == request.span_id]
        assert {span.name for span in parts} == {"queue", "prefill", "decode", "redis"}
        inside = [request.start_time_unix_nano, request.end_time_unix_nano]
        slack_ns = 50_000_000  # two clocks
        for span in parts:
            assert inside[0] - slack_ns <= span.start_time_unix_nano <= span.end_time_unix_nano
            assert span.end_time_unix_nano <= inside[1] + slack_ns
    learned = {span.name for span in collector.received if span.trace_id.hex() != TRACE}
    assert learned == {"POST /adapt", "adapt", "redis"}


def test_spans_are_off_unless_a_collector_is_named(http: httpx.Client, session: str) -> None:
    assert not spans.wanted({})
    assert not spans.wanted({"OTEL_EXPORTER_OTLP_ENDPOINT": ""})
    assert not spans.wanted(
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}
    )
    assert spans.span("a") is spans.span("b"), "nothing is made for it"
    ask(http, session)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1", True), ("a" * 128, True), ("a" * 129, False), ('x" y', False), ("", False)],
)
@pytest.mark.parametrize("path", ["/healthz", "/no/such/route"])
def test_every_answer_names_its_request(
    http: httpx.Client, given: str, kept: bool, path: str
) -> None:
    told = http.get(path, headers={"X-Request-ID": given}).headers["x-request-id"]
    assert (told == given) == kept
    assert told
    assert told != http.get(path).headers["x-request-id"]


def test_a_failure_names_its_request_too(
    live: LiveServer,
    http: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> None:
        raise RuntimeError("as nobody foresaw")

    monkeypatch.setattr(live.runtime.engine, "status", fail)
    with caplog.at_level(logging.INFO):
        answer = http.get("/readyz", headers={"X-Request-ID": "broken"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "broken"
    assert answer.headers["connection"] == "close"
