"""Where the three kinds of URL lead, and what a wrong one is told."""

import pytest

from server.sessions import StoreRefused, silence
from server.sessions.addresses import parse_address
from server.sessions.connection import Connection


def test_one_redis() -> None:
    found = parse_address("rediss://:p%40ss@host:7/2")
    assert (found.kind, found.tls, found.passwords) == ("single", True, ("p@ss",))
    assert (found.options["host"], found.options["port"], found.options["db"]) == ("host", 7, 2)


def test_sentinels() -> None:
    found = parse_address(
        "redis+sentinel://me:p%40ss@one:1,two,[::1]:3/main/2?sentinel_password=hush"
    )
    assert (found.kind, found.tls, found.service) == ("sentinel", False, "main")
    assert found.hosts == (("one", 1), ("two", 26379), ("::1", 3))
    assert found.options == {"username": "me", "password": "p@ss", "db": 2}
    assert found.sentinel_options == {"password": "hush"}
    assert "hush" not in repr(found)
    assert found.passwords == ("p@ss", "hush")


def test_a_cluster() -> None:
    found = parse_address("rediss+cluster://:p%40ss@one:1,two?ssl_cert_reqs=none")
    assert (found.kind, found.tls) == ("cluster", True)
    assert found.hosts == (("one", 1), ("two", 6379))
    assert found.options == {"password": "p@ss", "ssl_cert_reqs": "none"}


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis+other://host", r"redis\+sentinel://"),
        ("redis+sentinel://host:1", "names the service"),
        ("redis+sentinel://host:1/main/first", "no number of a database"),
        ("redis+cluster://host:1/2", "database 0 only"),
        ("redis+cluster://one:1,,two:2", "separated by commas"),
        ("redis+cluster://one:1?nonsense=1", "nonsense"),
    ],
)
def test_urls_that_are_none(url: str, told: str) -> None:
    with pytest.raises(StoreRefused, match=told):
        Connection(url, timeout_s=1.0)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://:s3cret@127.0.0.1:1/main?sentinel_password=h1dden",
        "redis+cluster://:s3cret@127.0.0.1:1",
    ],
)
async def test_why_there_is_silence_without_a_password(url: str) -> None:
    told = await silence(url, timeout_s=1.0)
    assert told is not None
    assert "s3cret" not in told
    assert "h1dden" not in told
