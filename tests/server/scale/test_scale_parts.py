"""How many replicas fit, who gets a request, and which configuration files are refused."""

import io
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("ray", reason="Ray is not installed: pip install 'innerloop[ray]'")

from server.listener import listen
from server.scale.deployment import Scale
from server.scale.driver import application_of
from server.scale.file import Arguments, build, check_file
from server.scale.lines import JsonStream
from server.scale.routing import spilled
from server.settings import Settings, SettingsError

SERVE_FILE = Path(__file__).parents[3] / "docker" / "serve.yaml"


@pytest.mark.parametrize(
    ("scale", "device", "resources", "cpus", "gpus"),
    [
        (Scale(replicas=3), "auto", {"CPU": 2}, 0.6666, 0),
        (Scale(replicas=2), "auto", {"CPU": 64}, 1, 0),
        (Scale(replicas=2), "auto", {"CPU": 64, "GPU": 2}, 1, 1),
        (Scale(replicas=9), "cpu", {"CPU": 64, "GPU": 2}, 1, 0),
        (Scale(replicas=4, gpus=0.5), "cuda", {"CPU": 64, "GPU": 2}, 1, 0.5),
        (Scale(replicas=1, max_replicas=8, cpus=0.25), "cpu", {"CPU": 2}, 0.25, 0),
    ],
)
def test_sizes_follow_the_cluster(
    scale: Scale, device: str, resources: dict[str, float], cpus: float, gpus: float
) -> None:
    fitted = scale.fitted(device, resources)
    assert (fitted.cpus, fitted.gpus) == (cpus, gpus)
    assert fitted.most * cpus <= resources["CPU"]


@pytest.mark.parametrize(
    ("scale", "device", "resources", "told"),
    [
        (Scale(replicas=2), "auto", {"CPU": 64, "GPU": 1}, "2 replicas of 1 GPUs each do not fit"),
        (Scale(replicas=1), "cuda", {"CPU": 64}, "on 0 GPUs"),
        (Scale(replicas=1, max_replicas=3), "cuda", {"CPU": 64, "GPU": 2}, "3 replicas"),
        (Scale(replicas=3, cpus=1), "cpu", {"CPU": 2}, "--replica-cpus"),
    ],
)
def test_more_than_fit_are_refused(
    scale: Scale, device: str, resources: dict[str, float], told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        scale.fitted(device, resources)


def test_a_session_keeps_its_replica_until_that_has_more_than_the_others() -> None:
    ring = ["mine", "next", "last"]
    assert spilled(ring, {"mine": 7, "next": 0, "last": 0}, 1.25, few=8) == ring
    assert spilled(ring, {"mine": 8, "next": 0, "last": 0}, 1.25, few=8) == ["next", "last", "mine"]
    assert spilled(ring, {"mine": 20, "next": 18, "last": 19}, 1.25, few=8) == ring
    assert spilled(ring, {"mine": 30, "next": 30, "last": 2}, 1.25, few=8)[0] == "last"


@given(
    loads=st.lists(st.integers(0, 500), min_size=1, max_size=12),
    factor=st.floats(1.01, 3),
    few=st.integers(1, 64),
)
def test_nobody_gets_a_request_above_the_bound_while_another_may(
    loads: list[int], factor: float, few: int
) -> None:
    by_name = dict(enumerate(loads))
    order = spilled(list(by_name), by_name, factor, few)
    assert sorted(order) == list(by_name)
    # The paper's promise: with factor > 1 somebody always has room.
    assert by_name[order[0]] < max(few, factor * (sum(loads) + 1) / len(loads))


def test_the_file_that_ships_is_understood() -> None:
    read = check_file(SERVE_FILE)
    (application,) = read["applications"]
    arguments = Arguments.model_validate(application["args"])
    assert arguments.scale.most == 4


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("route_prefix", "root_prefix", r"applications\[0\]\.root_prefix"),
        ("proxy_location", "proxy_place", "proxy_place"),
        ("doors:", "dors:", "dors"),
        ("cpus: 1 ", "cps: 1 ", r"scale\.cps"),
        ("port: 8000", "port: many", "port"),
        ("replicas: 2 ", "replicas: 0 ", r"scale\.replicas"),
        ("name: innerloop", "name: [", "yaml"),
    ],
)
def test_a_file_with_a_key_that_nobody_knows_is_refused(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    text = SERVE_FILE.read_text()
    assert old in text
    wrong = tmp_path / "serve.yaml"
    wrong.write_text(text.replace(old, new))
    with pytest.raises(SettingsError, match=told):
        check_file(wrong)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"setings": {}}, "setings"),
        ({"settings": {"rwos": 3}}, "rwos"),
        ({"settings": {"port": 80}}, "http_options"),
        ({"settings": {}}, "INNERLOOP_REDIS_URL"),
        ({"settings": {"redis_url": "redis://x:6379"}}, "INNERLOOP_API_KEYS"),
    ],
)
def test_an_application_is_refused_before_it_is_deployed(
    args: dict[str, object], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("INNERLOOP_REDIS_URL", "INNERLOOP_API_KEYS", "INNERLOOP_OPERATOR_KEYS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError, match=told):
        build(args)


def test_its_settings_are_those_of_the_server() -> None:
    (application,) = yaml.safe_load(SERVE_FILE.read_text())["applications"]
    assert set(application["args"]["settings"]) <= set(Settings.model_fields)


def test_a_log_of_several_processes_is_one_of_json_objects() -> None:
    out = io.StringIO()
    shown = JsonStream(out)
    said = {"time": "t", "level": "info", "logger": "server.access", "message": "GET (pid=3) x"}
    print(f"(ServeReplica:innerloop:Replica pid=7, ip=10.0.0.2) {json.dumps(said)}", file=shown)
    print("(ServeReplica:innerloop:Replica pid=7) Fatal Python error: Aborted", file=shown)
    print("no object and", "of nobody", file=shown, end="\n\n")
    shown.write("half a")
    shown.flush()
    shown.write(" line\n")
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert lines[0] == said | {"process": "ServeReplica:innerloop:Replica pid=7, ip=10.0.0.2"}
    assert lines[1]["process"] == "ServeReplica:innerloop:Replica pid=7"
    assert [line["message"] for line in lines[1:]] == [
        "Fatal Python error: Aborted",
        "no object and of nobody",
        "half a line",
    ]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)


def test_servers_on_one_cluster_have_names_of_their_own() -> None:
    with listen("127.0.0.1", 0) as one, listen("127.0.0.1", 0) as other:
        assert application_of(one) == application_of(one) != application_of(other)
        assert str(one.getsockname()[1]) in application_of(one)
