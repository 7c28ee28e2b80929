"""`innerloop doctor` on machines with one thing wrong each."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from server_harness import HANG_S, LiveServer, make_settings
from server_model import make_model_folder

from server.cli import main
from server.doctor import machine, serving, storage
from server.sessions import RedisServerMissing
from server.sessions.folder import Record
from server.settings import MODELS

Doctor = Callable[..., tuple[int, dict[str, dict[str, Any]]]]


@dataclass(frozen=True)
class Place:
    model: Path
    live: LiveServer
    data: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder, data = tmp_path_factory.mktemp("models") / "tiny", tmp_path_factory.mktemp("data")
    make_model_folder(folder)
    with LiveServer(make_settings(folder, data), [{}, {"api_keys": "acme:key"}]) as live:
        yield Place(folder, live, data)


@pytest.fixture
def doctor(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Doctor:
    """Runs it with settings of the environment; gives the code and the worst finding of each."""
    for name in list(os.environ):
        if name.upper().startswith("INNERLOOP_"):
            monkeypatch.delenv(name)
    for module in (serving, storage):
        monkeypatch.setattr(module, "TIMEOUT_S", HANG_S)

    def call(*args: str, quick: bool = True, **settings: str) -> tuple[int, dict[str, Any]]:
        defaults = {"model": str(place.model), "data_dir": str(tmp_path / "data"), "port": "0"}
        for name, value in (defaults | settings).items():
            monkeypatch.setenv(f"INNERLOOP_{name.upper()}", value)
        url = [] if "--url" in args else ["--url", place.live.urls[0]]
        code = main(["doctor", "--json", *(["--quick"] if quick else []), *url, *args])
        report = json.loads(capsys.readouterr().out)
        order = ("ok", "warning", "problem")
        found = sorted(report["findings"], key=lambda one: order.index(one["level"]))
        assert code == (1 if report["problem"] else 0)
        assert all(one["mend"] for one in found if one["level"] == "problem")
        return code, {one["check"]: one for one in found}

    return call


def test_a_machine_that_is_well(doctor: Doctor, place: Place, tmp_path: Path) -> None:
    code, found = doctor(quick=False)
    assert code == 0
    assert {name for name, one in found.items() if one["level"] == "ok"} >= {
        *("python", "settings", "redis", "data folder", "model", "port", "server"),
    }
    assert place.live.runtime.artifact.fingerprint[:16] in found["model"]["detail"]
    assert place.live.runtime.artifact.fingerprint[:16] in found["server"]["detail"]
    assert not (tmp_path / "data").exists(), "it changes nothing"


def test_its_lines_are_for_people(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--quick", "--url", place.live.urls[0]])
    found = capsys.readouterr()
    assert "ok      python        3." in found.out
    assert found.err.endswith("warnings\n")


def test_settings(doctor: Doctor) -> None:
    for settings in ({"port": "many"}, {"modle": "x"}, {"host": "0.0.0.0"}):
        code, found = doctor(**settings)
        assert (code, found["settings"]["level"]) == (1, "problem")
        assert found["redis"]["level"] == "ok", "the others are looked at all the same"


def test_short_keys_on_an_address_that_others_reach(doctor: Doctor) -> None:
    keys = {"api_keys": "acme:short,shop:" + 32 * "x", "operator_keys": "operator-secret-key"}
    assert "keys" not in doctor(**keys)[1]
    code, found = doctor(host="0.0.0.0", **keys)
    assert (code, found["keys"]["level"]) == (0, "warning")
    assert found["keys"]["detail"].startswith("1 have fewer than 16 characters")
    assert "short" not in found["keys"]["detail"]


def test_the_data_folder(doctor: Doctor, place: Place, tmp_path: Path) -> None:
    found = doctor(data_dir=str(place.data))[1]["data folder"]
    assert (found["level"], str(os.getpid()) in found["detail"]) == ("ok", True)
    (tmp_path / "file").write_text("")
    assert doctor(data_dir=str(tmp_path / "file" / "data"))[1]["data folder"]["level"] == "problem"
    newer = tmp_path / "newer"
    newer.mkdir(mode=0o700)
    Record("redis", (99, 0, 0), "/nowhere").write(newer)
    found = doctor(data_dir=str(newer))[1]["data folder"]
    assert (found["level"], "99.0.0" in found["detail"]) == ("problem", True)
    wide = tmp_path / "wide"
    wide.mkdir()
    wide.chmod(0o755)
    assert "chmod 700" in doctor(data_dir=str(wide))[1]["data folder"]["mend"]
    assert "data folder" not in doctor(redis_url="redis://localhost")[1]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else(doctor: Doctor, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert doctor()[1]["data folder"]["level"] == "problem"
    finally:
        tmp_path.chmod(0o700)


def test_without_redis(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    def missing() -> None:
        raise RedisServerMissing("there is no redis-server on this machine")

    monkeypatch.setattr(storage, "find_binary", missing)
    code, found = doctor()
    assert (code, found["redis"]["level"]) == (1, "problem")
    assert doctor(redis_url=redis_url)[1]["redis"]["level"] == "ok"


def echo(listener: socket.socket) -> None:
    taken, _ = listener.accept()
    with taken:
        sent = taken.recv(4096)
        assert b"s3cret" in sent
        taken.sendall(b"-ERR unknown command: " + sent.replace(b"\r\n", b" ") + b"\r\n")
        taken.recv(4096)


def test_a_redis_that_does_not_answer(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=echo, args=(listener,), daemon=True).start()
        there = f"127.0.0.1:{listener.getsockname()[1]}"
        told = {doctor(redis_url=f"redis://:s3cret@{there}")[1]["redis"]["detail"]}
    assert "***" in next(iter(told))
    monkeypatch.setattr(storage, "TIMEOUT_S", 1.0)
    for url, why in (
        (f"redis://me:s3cret@{there}/0", there),
        ("redis://:s3cret/more@localhost", "percent-encode"),
        ("redis://:s3cret#more@localhost", "percent-encode"),
        ("redis://localhost:s3cret", "percent-encode"),
    ):
        code, found = doctor(redis_url=url)
        assert (code, found["redis"]["level"]) == (1, "problem")
        assert why in found["redis"]["detail"]
        told.add(str(found))
    assert not [text for text in told if "s3cret" in text]


def test_models(doctor: Doctor, place: Place, tmp_path: Path) -> None:
    assert doctor(model="/no/such/folder")[1]["model"]["level"] == "problem"
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in place.model.iterdir():
        if file.is_file():
            (broken / file.name).write_bytes(file.read_bytes())
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:-100])
    code, found = doctor(quick=False, model=str(broken))
    assert (code, found["model"]["level"]) == (1, "problem")


def test_a_sentence_encoder(doctor: Doctor, tmp_path: Path) -> None:
    tiny = str(MODELS / "innerloop-tiny")
    for name, told in (("auto", "the encoder all-MiniLM-L6-v2"), ("none", "no sentence encoder")):
        found = doctor(quick=False, model=tiny, encoder=name)[1]["model"]
        assert (found["level"], told in found["detail"]) == ("ok", True)
    for name, why in (("nowhere", "there is no folder nowhere"), (str(tmp_path), "no tokenizer")):
        code, every = doctor(quick=False, model=tiny, encoder=name)
        found = every["model"]
        assert (code, found["level"], why in found["detail"]) == (1, "problem", True)
        assert "INNERLOOP_ENCODER" in found["mend"]


def test_memory(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for free, level in ((None, "warning"), (1, "problem"), (2**30, "warning"), (2**40, "ok")):
        for module in ("machine", "serving"):
            monkeypatch.setattr(f"server.doctor.{module}.free_bytes", lambda free=free: free)
        assert doctor()[1]["memory"]["level"] == level
    monkeypatch.undo()
    assert 0 < (machine.free_bytes() or 1) < 2**50
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 350\ninactive_file 300\nactive_file 50\n")
    assert machine._container_bytes(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert machine._container_bytes(tmp_path) is None


def test_packages_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        machine, "requires", lambda _: ["torch<1", "no-such-thing", "x; extra=='y'"]
    )
    found = list(machine.packages())
    assert [one.level for one in found] == ["problem", "problem"]
    assert "pip install 'torch<1'" in found[0].mend
    [found_torch] = machine.pytorch("cuda:99")
    assert (found_torch.level, "cuda:99" in found_torch.detail) == ("problem", True)
    assert next(iter(machine.pytorch("auto"))).level != "problem"


@pytest.mark.parametrize(
    ("found", "command", "level", "told"),
    [
        (Path("/x/kernels.so"), [], "ok", "are compiled: /x/kernels.so"),
        (None, ["/usr/bin/c++"], "ok", "at the first start, by /usr/bin/c++"),
        (None, [], "warning", "no C++ compiler"),
    ],
)
def test_operations_for_decode_steps(
    monkeypatch: pytest.MonkeyPatch, found: Path | None, command: list[str], level: str, told: str
) -> None:
    monkeypatch.setattr("server.engine.kernels.found_kernels", lambda: found)
    monkeypatch.setattr("server.engine.kernels.compiler", lambda: command)
    [finding] = machine.kernels()
    assert finding.level == level
    assert told in finding.detail
    assert bool(finding.mend) == (level == "warning")


def test_the_port_and_the_server(doctor: Doctor, place: Place) -> None:
    away = ["--url", "http://127.0.0.1:9"]
    code, found = doctor(*away)
    assert (code, found["server"]["level"], found["port"]["level"]) == (0, "warning", "ok")
    taken = place.live.urls[0].rpartition(":")[2]
    assert doctor(port=taken)[1]["port"]["level"] == "ok"
    with socket.create_server(("127.0.0.1", 0)) as other:
        found = doctor(*away, port=str(other.getsockname()[1]))[1]
        assert (found["port"]["level"], "in use" in found["port"]["detail"]) == ("problem", True)
    keyed = ["--url", place.live.urls[1]]
    assert doctor(*keyed)[1]["key"]["level"] == "warning"
    assert doctor(*keyed, "--key", "wrong")[1]["key"]["level"] == "problem"
    assert "key" not in doctor(*keyed, "--key", "key")[1]
