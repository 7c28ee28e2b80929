"""The container files against the code they ship; building the images needs Docker."""

import json
import re
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from dockerfile import read_dockerfile
from packaging.requirements import Requirement

from server.sessions.binary import find_binary
from server.settings import OTHER_VARIABLES, PREFIX, Settings, SettingsError, load_settings

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
TARGETS = ("cpu", "cuda")
KNOWN = {PREFIX + name.upper() for name in Settings.model_fields} | OTHER_VARIABLES


def instructions(target: str) -> list[tuple[str, str]]:
    """All instructions that make ``target``, those of the stages it starts from first."""
    _, stages = read_dockerfile()
    found: list[tuple[str, str]] = []
    name = target
    while name in stages:
        found = stages[name].instructions + found
        name = stages[name].base
    return found


def last(target: str, word: str) -> str:
    """The argument of the last ``word`` instruction, the one that counts."""
    return [rest for key, rest in instructions(target) if key == word][-1]


def environment(target: str) -> dict[str, str]:
    """What the image's ENV instructions set."""
    pairs = [pair for key, rest in instructions(target) if key == "ENV" for pair in rest.split()]
    return dict(pair.split("=", 1) for pair in pairs)


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    """A compose file as it stands, nothing interpolated."""
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / name).read_text())
    return loaded


def interpolate(value: str, given: dict[str, str]) -> str:
    """Compose's ``${NAME:-default}`` and ``${NAME:?message}``."""

    def put(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if given.get(name):
            return given[name]
        assert kind == ":-", f"{name} is required: {rest}"
        return rest

    return re.sub(r"\$\{(\w+)(:[-?])([^}]*)\}", put, value)


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No settings but those of the test."""
    for name in KNOWN:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_the_base_images_are_pinned() -> None:
    arguments, stages = read_dockerfile()
    bases = {stage.base for stage in stages.values()} - set(stages)
    images = {arguments[base.strip("${}")] if base.startswith("$") else base for base in bases}
    images.add(compose()["services"]["redis"]["image"])
    for image in images:
        assert re.search(r":\d+\.\d+\.\d+", image), f"{image} names no exact version"


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_nobody_in_particular(target: str) -> None:
    user, group = last(target, "USER").split(":")
    assert int(user) > 0
    assert int(group) > 0
    assert instructions(target)[-1][0] == "USER", "nothing after USER may need another user"
    assert json.loads(last(target, "VOLUME")) == ["/data"]


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_copies_only_what_the_builder_gets(target: str) -> None:
    _, stages = read_dockerfile()
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    copied = {
        source
        for stage in stages.values()
        for word, rest in stage.instructions
        if word == "COPY" and not rest.startswith("--from=")
        for source in rest.split()[:-1]
    }
    assert copied == allowed
    sources = re.findall(r"(?:--from=|from=)([\w-]+)", str(instructions(target)))
    assert sources
    assert set(sources) <= set(stages)


@pytest.mark.parametrize("target", TARGETS)
def test_the_server_takes_the_environment_of_an_image(
    target: str, clean_environment: pytest.MonkeyPatch
) -> None:
    for name, value in environment(target).items():
        if name.startswith(PREFIX):
            clean_environment.setenv(name, value)
    with pytest.raises(SettingsError, match="INNERLOOP_API_KEYS"):
        load_settings()
    clean_environment.setenv("INNERLOOP_API_KEYS", "shop:secret")
    settings = load_settings()
    assert settings.host == "0.0.0.0"
    assert settings.device == target
    assert settings.data_dir.is_relative_to("/data")
    assert int(last(target, "EXPOSE")) == settings.port


def test_the_server_takes_the_environment_of_the_compose_file(
    clean_environment: pytest.MonkeyPatch,
) -> None:
    server = compose()["services"]["server"]
    given = {"INNERLOOP_API_KEYS": "shop:secret"}
    for name, value in {**environment("cpu"), **server["environment"]}.items():
        if name.startswith(PREFIX):
            clean_environment.setenv(name, interpolate(value, given))
    settings = load_settings()
    assert settings.redis_url == "redis://redis:6379/0"
    assert "redis" in compose()["services"]
    assert interpolate(server["ports"][0], {}) == f"127.0.0.1:8000:{settings.port}"
    # Requests drain, then jobs; each has its time. The overlay of replicas adds a delay.
    overlay = (DOCKER / "compose.replicas.yaml").read_text()
    delays = [int(text) for text in re.findall(r'SHUTDOWN_DELAY_S: "(\d+)"', overlay)]
    ending_s = max(settings.shutdown_delay_s, *delays) + 2 * settings.drain_s
    assert int(server["stop_grace_period"].removesuffix("s")) > ending_s


def test_compose_refuses_to_start_without_keys() -> None:
    keys = compose()["services"]["server"]["environment"]["INNERLOOP_API_KEYS"]
    with pytest.raises(AssertionError, match="INNERLOOP_API_KEYS is required: set it to"):
        interpolate(keys, {})


@pytest.mark.parametrize(
    "path", sorted(p for p in DOCKER.rglob("*") if p.is_file()), ids=lambda p: p.name
)
def test_every_variable_named_is_a_setting(path: Path) -> None:
    assert set(re.findall(r"\bINNERLOOP_[A-Z_]+", path.read_text())) <= KNOWN


def test_compose_builds_targets_that_exist() -> None:
    _, stages = read_dockerfile()
    base, cuda = compose(), compose("compose.cuda.yaml")
    targets = [file["services"]["server"]["build"]["target"] for file in (base, cuda)]
    assert targets == list(TARGETS)
    assert set(targets) <= set(stages)
    build = base["services"]["server"]["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).samefile(DOCKER / "Dockerfile")
    taken = {rest.split("=")[0] for word, rest in instructions("dependencies-cpu") if word == "ARG"}
    assert set(build["args"]) <= taken


def test_images_hold_the_versions_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch,) = {rest for word, rest in instructions("dependencies-cpu") if rest[:6] == "TORCH="}
    assert torch in {rest for _, rest in instructions("dependencies-cuda")}
    name, version = torch.removeprefix("TORCH=").split("==")
    assert f"TORCH ?= {name}=={version}\n" in (ROOT / "Makefile").read_text()
    (wanted,) = (Requirement(each) for each in project["dependencies"] if each.startswith(name))
    assert wanted.specifier.contains(version)
    for file in ("compose.yaml", "compose.cuda.yaml"):
        image = compose(file)["services"]["server"]["image"]
        assert image.startswith(f"innerloop:{project['version']}-")


def test_the_server_waits_for_a_redis_that_keeps_its_data() -> None:
    services = compose()["services"]
    assert services["server"]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert services["redis"]["healthcheck"]["test"]
    assert services["redis"]["volumes"] == ["redis-data:/data"]
    assert "ports" not in services["redis"], "it has no password"
    mounted = {volume.split(":")[0] for each in services.values() for volume in each["volumes"]}
    assert mounted == set(compose()["volumes"])


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose sockets stay within the 108 bytes of a Unix socket's path."""
    with tempfile.TemporaryDirectory(prefix="innerloop-", dir="/tmp") as folder:
        yield Path(folder)


def test_redis_starts_with_the_arguments_of_the_compose_file(short_folder: Path) -> None:
    _, *arguments = compose()["services"]["redis"]["command"]
    socket = short_folder / "redis.sock"
    command = [str(find_binary().path), *arguments, "--port", "0", "--unixsocket", str(socket)]
    process = subprocess.Popen(command, cwd=short_folder, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert any("ready to accept connections" in line.lower() for line in process.stdout)
        with redis.Redis(unix_socket_path=str(socket), decode_responses=True) as client:
            found = client.config_get("append*") | client.config_get("maxmemory-policy")
        assert found["appendonly"] == "yes"
        assert found["appendfsync"] == "always"
        assert found["maxmemory-policy"] == "noeviction"
    finally:
        process.terminate()
        process.communicate()


class Healthy(BaseHTTPRequestHandler):
    """Answers /healthz and nothing else."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test reads no log."""


@pytest.fixture
def healthy_port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("target", TARGETS)
def test_the_health_check_asks_the_server(target: str, healthy_port: int) -> None:
    check = last(target, "HEALTHCHECK")
    command = json.loads(check[check.index("CMD") + 3 :])
    assert command[0] == "python"
    hasty, limit_s = re.search(r"timeout=(\d+)", command[-1]).group(0, 1)  # type: ignore[union-attr]
    assert int(limit_s) < int(re.findall(r"--timeout=(\d+)s", check)[0])
    command[-1] = command[-1].replace(hasty, "timeout=600")  # this machine may be a busy one

    def run(port: int) -> int:
        variables = {"INNERLOOP_PORT": str(port)}
        return subprocess.run(
            [sys.executable, *command[1:]], env=variables, stderr=subprocess.DEVNULL, check=False
        ).returncode

    assert run(healthy_port) == 0
    assert run(1) != 0, "nothing listens there"
