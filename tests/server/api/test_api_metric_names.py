"""Names, units and labels of the metrics: what Prometheus' conventions ask, and bounded labels."""

import re
from pathlib import Path

import httpx
from api_calls import ask, teach
from prometheus_client.parser import text_string_to_metric_families

PAGE = Path(__file__).parents[3] / "docs" / "operating.md"
LABELS = {"method", "route", "status", "outcome", "le"}
"""Each has few values: no session, tenant, request or text."""


def test_names_have_units_and_labels_are_bounded(http: httpx.Client, session: str) -> None:
    teach(http, session)
    ask(http, session)
    rows = re.findall(r"^\| `(innerloop_\w+)` \| (\w+) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    told = {name: (kind, text) for name, kind, text in rows}
    for family in text_string_to_metric_families(http.get("/metrics").text):
        if family.name.endswith("_created"):
            continue
        kind, text = told[family.name + ("_total" if family.type == "counter" else "")]
        assert kind == family.type, family.name
        assert family.documentation
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
        assert ("bytes" in family.name) == ("bytes" in family.documentation), family.name
        assert ("bytes" in family.name) == family.name.endswith("_bytes"), family.name
        assert not re.search(r"_(ms|millis|kb|mb|percent)\b", family.name)
        labels = {label for sample in family.samples for label in sample.labels}
        assert labels <= LABELS
        for label in labels - {"le"}:
            assert label in text, f"docs/operating.md does not name {label} of {family.name}"
