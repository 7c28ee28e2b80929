"""Proxies, monitoring and Kubernetes as docker/ ships them, against the code that they run.

nginx's configuration is run in tests/server/test_replicas.py, those of Envoy and Prometheus in
tests/server/test_docker_live.py. No Grafana and no cluster runs: what is checked here is that the
files parse and fit to the server.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from server.api.body_limit import IMPORT_PATH
from server.engine.status import EngineStatus
from server.settings import Settings
from server.telemetry import Telemetry

DOCKER = Path(__file__).parents[1] / "docker"
MONITORING = DOCKER / "monitoring"


def served() -> set[str]:
    """Names of all samples that `GET /metrics` has."""
    telemetry = Telemetry()
    telemetry.answered("GET", "/healthz", 200, 0.1, 0.2)
    status = EngineStatus(**dict.fromkeys(EngineStatus.__dataclass_fields__, 0))
    text = telemetry.exposition(status).decode()
    samples = {s.name for f in text_string_to_metric_families(text) for s in f.samples}
    return {name for name in samples if not name.endswith("_created")}


def named(text: str) -> set[str]:
    return set(re.findall(r"\binnerloop_\w+", text))


def family(sample: str) -> str:
    """A histogram is one metric: whichever of its samples is shown shows it."""
    return re.sub(r"_(bucket|count|sum)$", "", sample)


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    board = json.loads((MONITORING / "dashboard.json").read_text())
    targets = [target for panel in board["panels"] for target in panel.get("targets", ())]
    shown = {name for target in targets for name in named(target["expr"])}
    assert shown <= served()
    assert {family(name) for name in shown} == {family(name) for name in served()}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    source = yaml.safe_load((MONITORING / "grafana-datasources.yaml").read_text())["datasources"][0]
    assert {target["datasource"]["uid"] for target in targets} == {source["uid"]}


def test_alerts_are_about_metrics_that_there_are() -> None:
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    assert {name for rule in group["rules"] for name in named(rule["expr"])} <= served()
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"])
    config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    assert config["rule_files"] == ["alerts.yaml"]
    (job,) = config["scrape_configs"]
    assert all(
        f'job="{job["job_name"]}"' in r["expr"] for r in group["rules"] if "up{" in r["expr"]
    )


@pytest.mark.parametrize("name", ["compose.replicas.yaml", "compose.monitoring.yaml"])
def test_overlays_mount_files_that_are_there(name: str) -> None:
    loaded = yaml.load((DOCKER / name).read_text(), Loader=Overlay)
    for service in loaded["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).is_file()
            else:
                assert source in loaded["volumes"]
        image = service.get("image")
        assert image is None or re.search(r":v?\d+\.\d+\.\d+", image), image


class Overlay(yaml.SafeLoader):
    """Knows the words by which an overlay takes back what the file before it said."""


for tag in ("!reset", "!override"):
    Overlay.add_constructor(tag, lambda loader, node: loader.construct_sequence(node))


def test_proxies_know_the_replicas_of_the_overlay() -> None:
    overlay = yaml.load((DOCKER / "compose.replicas.yaml").read_text(), Loader=Overlay)
    replicas = [name for name in overlay["services"] if name.startswith("server")]
    aliases = {
        alias
        for name in replicas
        for alias in overlay["services"][name]["networks"]["front"]["aliases"]
    }
    for file in ("nginx.conf", "envoy.yaml"):
        text = (DOCKER / file).read_text()
        assert set(re.findall(r"\breplica-\w+\b", text)) == aliases
        ports = set(re.findall(r"replica-\w+(?::|, port_value: )(\d+)", text))
        assert ports == {str(Settings.model_fields["port"].default)}


def test_proxies_let_through_what_the_server_takes() -> None:
    text = (DOCKER / "nginx.conf").read_text()
    places = {"": text.partition("location ")[0]}
    places |= dict(re.findall(r"\blocation = (\S+) \{(.*?)\n    \}", text, re.DOTALL))
    for place, setting in (("", "max_body_bytes"), (IMPORT_PATH, "max_import_bytes")):
        ((megabytes, named),) = re.findall(r"client_max_body_size (\d+)m;  # (\w+)", places[place])
        assert int(megabytes) * 2**20 == Settings.model_fields[setting].default
        assert named == f"INNERLOOP_{setting.upper()}"
    assert "proxy_pass http://innerloop;" in places[IMPORT_PATH]
    # A proxy that streams bodies bounds none: only Envoy's buffer filter would.
    assert "filters.http.buffer" not in (DOCKER / "envoy.yaml").read_text()


def envoy() -> tuple[dict[str, Any], dict[str, Any]]:
    """The virtual host and the cluster."""
    config = yaml.safe_load((DOCKER / "envoy.yaml").read_text())["static_resources"]
    manager = config["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    return manager["route_config"]["virtual_hosts"][0], config["clusters"][0]


@pytest.mark.parametrize(
    ("path", "resent"),
    [
        ("/generate", True),
        ("/feedback", True),
        ("/v1/chat/completions", True),
        ("/adapt", True),
        ("/sessions", False),
        ("/sessions/a/feedback/1", False),
        ("/admin/sessions/a/reset", False),
    ],
)
def test_envoy_sends_again_what_is_safe(path: str, resent: bool) -> None:
    host, cluster = envoy()
    route = next(each for each in host["routes"] if matches(each["match"], path))
    matched = route["route"]
    retry = matched.get("retry_policy", host["retry_policy"])
    assert matched["cluster"] == cluster["name"]
    assert matched["timeout"] == "0s"
    assert ("reset" in retry["retry_on"].split(",")) == resent
    # The ring would name the same replica again.
    assert retry["retry_host_predicate"][0]["name"].endswith("previous_hosts")
    keyed = [each["header"]["key"] for each in route.get("request_headers_to_add", ())]
    assert keyed == (["idempotency-key"] if path == "/adapt" else [])
    assert matched["hash_policy"][0]["header"]["header_name"] == "x-session-id"
    assert cluster["lb_policy"] == "RING_HASH"
    assert cluster["health_checks"][0]["http_health_check"]["path"] == "/readyz"


def matches(match: dict[str, Any], path: str) -> bool:
    if "prefix" in match:
        return path.startswith(match["prefix"])
    if "path" in match:
        return path == str(match["path"])
    return re.fullmatch(match["safe_regex"]["regex"], path) is not None


def manifests() -> dict[tuple[str, str], dict[str, Any]]:
    found = {}
    for path in (DOCKER / "kubernetes").glob("*.yaml"):
        for each in yaml.safe_load_all(path.read_text()):
            found[each["kind"], each["metadata"]["name"]] = each
    return found


def test_kubernetes_gives_the_server_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = manifests()["Deployment", "innerloop"]["spec"]["template"]["spec"]
    # The Service's name would put INNERLOOP_PORT=tcp://... into the pod's environment.
    assert pod["enableServiceLinks"] is False
    (server,) = pod["containers"]
    values = {e["name"].removeprefix("INNERLOOP_").lower(): e.get("value") for e in server["env"]}
    assert set(values) <= set(Settings.model_fields)
    settings = Settings(**{name: value for name, value in values.items() if value is not None})
    # Requests drain, then jobs; each has its time.
    ending_s = settings.shutdown_delay_s + 2 * settings.drain_s
    assert pod["terminationGracePeriodSeconds"] > ending_s
    ready = server["readinessProbe"]
    assert settings.shutdown_delay_s > 2 * ready["periodSeconds"] * ready["failureThreshold"]
    assert ready["httpGet"]["path"] == "/readyz"
    assert server["livenessProbe"]["httpGet"]["path"] == "/healthz"
    (port,) = server["ports"]
    assert port["containerPort"] == settings.port
    mounts = {mount["name"]: mount["mountPath"] for mount in server["volumeMounts"]}
    assert mounts == {"data": "/data", "tmp": "/tmp"}


def test_kubernetes_names_fit_together() -> None:
    found = manifests()
    for kind, name in found:
        spec = found[kind, name]["spec"]
        if kind in ("Deployment", "StatefulSet"):
            labels = spec["template"]["metadata"]["labels"]
            assert spec["selector"]["matchLabels"].items() <= labels.items()
    pods = [
        found[key]["spec"]["template"]["metadata"]["labels"]
        for key in found
        if key[0] in ("Deployment", "StatefulSet")
    ]
    for kind, name in found:
        selector = found[kind, name]["spec"].get("selector")
        if kind == "Service":
            assert selector in pods
        elif kind == "PodDisruptionBudget":
            assert selector["matchLabels"] in pods
    stateful = found["StatefulSet", "innerloop-redis"]["spec"]
    assert ("Service", stateful["serviceName"]) in found
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["redis"]
    (redis,) = stateful["template"]["spec"]["containers"]
    assert redis["args"] == compose["command"]
    assert redis["image"] == compose["image"]
