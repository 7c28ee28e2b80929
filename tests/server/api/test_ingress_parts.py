"""What the door of several replicas knows of a request, and how it adds up their metrics."""

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.api.affinity import session_of
from server.api.merging import merged
from server.engine import EngineStatus
from server.telemetry import Telemetry


def scope(path: str = "/generate", method: str = "POST", **headers: str) -> dict[str, object]:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "headers": raw}


@pytest.mark.parametrize(
    ("asked", "body", "session"),
    [
        (scope(), {"session_id": "a"}, "a"),
        (scope(x_session_id="b"), {"session_id": "a"}, "b"),
        (scope("/sessions/c/feedback", "GET"), None, "c"),
        (scope("/admin/sessions/c:1@x/reset"), None, "c:1@x"),
        (scope("/sessions"), {"session_id": "new", "fork": "old"}, "new"),
        (scope(), {"session_id": 3}, None),
        (scope(), ["session_id"], None),
        (scope(), {"session_id": "not a name"}, None),
        (scope("/sessions/%0a/events", "GET"), None, None),
        (scope("/", "GET"), None, None),
    ],
)
def test_the_session_is_found_where_it_is_named(
    asked: dict[str, object], body: object, session: str | None
) -> None:
    assert session_of(asked, b"" if body is None else json.dumps(body).encode()) == session


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_names_no_session(body: bytes) -> None:
    assert session_of(scope(), body) is None


def test_an_imported_zip_is_not_read() -> None:
    asked = scope("/sessions", content_type="application/zip")
    assert session_of(asked, b'{"session_id": "a"}') is None


def test_metrics_of_two_are_told_apart() -> None:
    idle = EngineStatus(**dict.fromkeys(EngineStatus.__dataclass_fields__, 0))
    telemetries = [Telemetry(), Telemetry()]
    for count, telemetry in enumerate(telemetries, 1):
        for _ in range(count):
            telemetry.answered("GET", "/healthz", 200, 0.01, 0.02)
    texts = [telemetry.exposition(idle) for telemetry in telemetries]
    together = merged([(str(n), text) for n, text in enumerate(texts)])
    families = {family.name: family for family in text_string_to_metric_families(together.decode())}
    alone = {family.name: family for family in text_string_to_metric_families(texts[0].decode())}
    assert families.keys() == alone.keys()
    for name, family in families.items():
        assert (family.type, family.documentation) == (alone[name].type, alone[name].documentation)
        assert len(family.samples) == 2 * len(alone[name].samples)
    counts = {
        sample.labels["replica"]: sample.value
        for sample in families["innerloop_http_request_seconds"].samples
        if sample.name.endswith("_count")
    }
    assert counts == {"0": 1.0, "1": 2.0}
