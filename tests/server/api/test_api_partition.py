"""A Redis that is there and cannot be reached: clear errors, streams that go on, nothing lost."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from api_calls import ANSWER, EXAMPLES, QUESTION, ask, events, ok, problem, teach
from redis_process import RedisProcess, redis_process, until
from server_harness import HANG_S, LiveServer, make_settings
from tcp_proxy import Proxy

from server.sessions import SessionStore

DISK = ("--appendonly", "yes", "--appendfsync", "always")
NETWORK = "198.18.77"  # for tests of networks, RFC 2544


@dataclass(frozen=True)
class Line:
    """The way to a Redis."""

    url: str
    cut: Callable[[], None]
    heal: Callable[[], None]


@contextmanager
def proxied(folder: Path) -> Iterator[Line]:
    with redis_process(folder, *DISK) as redis, Proxy(redis.port) as proxy:
        yield Line(f"redis://127.0.0.1:{proxy.port}", proxy.cut, proxy.heal)


@contextmanager
def elsewhere(folder: Path) -> Iterator[Line]:
    """In a network namespace of its own, whose only cable can be pulled."""
    name = f"il-{os.getpid()}"
    inside, here = f"{name}-i", f"{name}-o"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    with ExitStack() as stack:
        ip("netns", "add", name)
        stack.callback(ip, "netns", "del", name)
        ip("link", "add", here, "type", "veth", "peer", "name", inside, "netns", name)
        ip("addr", "add", f"{NETWORK}.1/24", "dev", here)
        ip("link", "set", here, "up")
        ip("-n", name, "addr", "add", f"{NETWORK}.2/24", "dev", inside)
        ip("-n", name, "link", "set", inside, "up")
        # Redis binds its address, which a line that is not up yet may not have.
        within = ("ip", "netns", "exec", name)
        options = ("--protected-mode", "no", "--save", "", *DISK)
        redis = RedisProcess(folder, *options, host=f"{NETWORK}.2", within=within)
        stack.callback(redis.kill)
        redis.start()
        yield Line(
            f"redis://{NETWORK}.2:{redis.port}",
            lambda: ip("-n", name, "link", "set", inside, "down"),
            lambda: ip("-n", name, "link", "set", inside, "up"),
        )


def can_make_networks() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    probe = f"il-probe-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", probe], check=False, capture_output=True)
    subprocess.run(["ip", "netns", "del", probe], check=False, capture_output=True)
    return tried.returncode == 0


NAMESPACES = pytest.mark.skipif(not can_make_networks(), reason="no network namespaces here")


@pytest.mark.parametrize("way", [proxied, pytest.param(elsewhere, marks=NAMESPACES)])
def test_a_redis_out_of_reach(
    model_folder: Path,
    tmp_path: Path,
    way: Callable[[Path], AbstractContextManager[Line]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Five seconds a command, several commands a request, would be this test's whole length.
    monkeypatch.setitem(SessionStore.open.__func__.__kwdefaults__, "timeout_s", 3.0)
    with way(tmp_path / "redis") as line:
        settings = make_settings(model_folder, tmp_path, redis_url=line.url)
        with LiveServer(settings) as live, live.client() as http:
            teach(http, "a")
            long = {"session_id": "b", "prompt": QUESTION, "max_tokens": 170, "temperature": 1.0}
            answers = (ok(http.post("/generate", json={**long, "seed": n})) for n in range(50))
            seed, whole = next(
                (n, one) for n, one in enumerate(answers) if one["finish_reason"] == "length"
            )
            streamed = {**long, "seed": seed, "stream": True}
            with ExitStack() as stack:
                with live.held_after(60) as still:  # else all may be said and kept before the cut
                    response = stack.enter_context(http.stream("POST", "/generate", json=streamed))
                    lines = response.iter_lines()
                    first = next(lines)
                    assert still.wait(HANG_S)
                    line.cut()
                told = events("\n".join([first, *lines]))
            # Every token came; then it says that this completion cannot be kept for feedback.
            name, document = told[-1]
            assert (name, document["status"]) == ("error", 503)
            assert "".join(one["text"] for _, one in told[:-1]) == whole["text"]

            question = {"session_id": "a", "prompt": QUESTION}
            assert "Redis" in problem(http.post("/generate", json=question), 503)["detail"]
            body = {"session_id": "a", "examples": EXAMPLES}
            keyed = {"Idempotency-Key": "once"}
            problem(http.post("/adapt", json=body, headers=keyed), 503)
            problem(http.get("/readyz"), 503)
            ok(http.get("/healthz"))

            line.heal()
            # A network that lost its neighbour looks for it again only after some seconds.
            until(lambda: http.get("/readyz").status_code == 200)
            answer = ask(http, "a")
            assert (answer["text"], answer["adapter_version"] >= 1) == (ANSWER, True)
            ok(http.post("/adapt", json=body, headers=keyed))
            items = ok(http.get("/sessions/a/feedback"))["items"]
            # What was told before, and once what was told again and again.
            assert [one["status"] for one in items] == ["superseded"] * 2 + ["applied"] * 2


def test_a_clock_set_back_and_ahead_under_a_server(model_folder: Path, tmp_path: Path) -> None:
    """Redis' clock, which is everybody's, moved by libfaketime."""
    library = next(map(Path, FAKETIME), None)
    if library is None:
        pytest.skip("libfaketime is not installed")
    offset = tmp_path / "offset"
    offset.write_text("+0")
    environment = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
    }
    with redis_process(tmp_path / "redis", *DISK, **environment) as redis:
        url = f"redis://127.0.0.1:{redis.port}"
        settings = make_settings(
            model_folder,
            tmp_path,
            redis_url=url,
            takeover_s=1,
            session_lifetime_s=3600,
            session_requests="100/s:100",
        )
        with LiveServer(settings) as live, live.client() as http:
            for jump in ("+0", "+2d", "-2d", "+0"):
                _jump(redis, offset, jump)
                session = jump.replace("+", "plus")
                teach(http, session)
                assert ask(http, session)["text"] == ANSWER
                live.call(live.runtime.store.expire(3600))
            listed = {one["session_id"] for one in ok(http.get("/admin/sessions"))["sessions"]}
            assert listed >= {"plus0", "plus2d"}


def _jump(redis: RedisProcess, offset: Path, jump: str) -> None:
    before = redis.client.time()[0]
    offset.write_text(jump)
    assert jump == "+0" or abs(redis.client.time()[0] - before) > 3600


FAKETIME = [
    path
    for path in (
        os.environ.get("FAKETIME", ""),
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    )
    if path and Path(path).is_file()
]
