"""Redis URLs: one server, a primary that Sentinels name, or a Cluster.

It knows how the URLs are written and opens no connection.

    redis://user:password@host:6379/1                               one server (rediss:// with TLS)
    unix:///run/redis.sock                                          the same, by its socket
    redis+sentinel://user:password@host:26379,host:26379/service/1  whom the Sentinels name
    redis+cluster://user:password@host:7000,host:7001               a Cluster, by some of its nodes

`rediss+sentinel://` and `rediss+cluster://` are the same with TLS. User and password are Redis';
those of the Sentinels are the options `sentinel_username` and `sentinel_password`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis.asyncio.connection import SSLConnection, parse_url

from server.sessions.errors import StoreRefused

Host = tuple[str, int]

SENTINEL_PORT = 26379
REDIS_PORT = 6379


@dataclass(frozen=True, slots=True)
class Address:
    """Where Redis is: `hosts` are Sentinels, or nodes of a Cluster."""

    kind: Literal["single", "sentinel", "cluster"]
    options: Mapping[str, Any] = field(repr=False)  # of each connection to Redis
    tls: bool = False
    hosts: tuple[Host, ...] = ()
    service: str = ""
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def passwords(self) -> tuple[str, ...]:
        """What no message may repeat."""
        found = (self.options.get("password"), self.sentinel_options.get("password"))
        return tuple(str(one) for one in found if one)


def parse_address(url: str) -> Address:
    """Read a URL. Raises StoreRefused, which never repeats what may be a password."""
    try:
        scheme, _, rest = url.partition("://")
        secure, plus, kind = scheme.partition("+")
        if not plus:
            return _single(url)
        if secure not in ("redis", "rediss") or kind not in ("sentinel", "cluster"):
            raise ValueError("it begins with redis+sentinel:// or redis+cluster://, or rediss+…")
        return _several(secure, kind, rest)
    except ValueError as error:
        raise StoreRefused(f"Redis URL: {error}") from error


def _single(url: str) -> Address:
    return Address("single", parse_url(url), tls=url.startswith("rediss:"))


def _several(secure: str, kind: str, rest: str) -> Address:
    parts = urlsplit(f"//{rest}")
    login, at, places = parts.netloc.rpartition("@")
    default = SENTINEL_PORT if kind == "sentinel" else REDIS_PORT
    hosts = tuple(_host(place, default) for place in places.split(","))
    path = [unquote(part) for part in parts.path.split("/") if part]
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    sentinel = {
        name: query.pop(f"sentinel_{name}")
        for name in ("username", "password")
        if f"sentinel_{name}" in query
    }
    database = path[1:] if kind == "sentinel" else path
    if kind == "sentinel" and not 1 <= len(path) <= 2:
        raise ValueError(
            "after the Sentinels it names the service they watch, as in "
            "redis+sentinel://host:26379,host:26379/mymaster"
        )
    if kind == "cluster" and (path not in ([], ["0"]) or sentinel):
        raise ValueError("a Cluster has the database 0 only, and no Sentinel")
    if database and not database[0].isdigit():
        raise ValueError(f"{database[0]!r} is no number of a database")
    # Everything else is written as in the URL of one server, and read by redis-py.
    options: dict[str, Any] = {}
    options |= parse_url(f"{secure}://{login}{at}host/{'/'.join(database)}?{urlencode(query)}")
    del options["host"]
    tls = options.pop("connection_class", None) is SSLConnection
    if kind == "cluster":
        options.pop("db", None)
        return Address("cluster", options, tls=tls, hosts=hosts)
    return Address(
        "sentinel", options, tls=tls, hosts=hosts, service=path[0], sentinel_options=sentinel
    )


def _host(place: str, default: int) -> Host:
    parts = urlsplit(f"//{place}")
    if not parts.hostname or "@" in place:
        raise ValueError("hosts are separated by commas, as in host:7000,host:7001")
    return parts.hostname, parts.port or default
