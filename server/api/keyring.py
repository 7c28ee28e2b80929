"""Who calls: a client of one tenant, an operator, or a page with a session token.

Keys come from the environment or are stored in Redis, where operators make and revoke them. Where
there are neither, the server serves its own machine only, and the caller is everybody: the tenant
`default` and operator. It knows keys and headers, not what they open.
"""

import hashlib
import hmac
import logging
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from server import logs
from server.api.context import Running
from server.api.problems import Problem, invalid
from server.runtime import Runtime
from server.sessions import TOKEN_PREFIX, Access, SessionToken, StoreUnavailable
from server.settings import TENANT_PATTERN, Settings, is_loopback

logger = logging.getLogger(__name__)

DEFAULT_TENANT = "default"
LOOPBACK = "loopback"
ENVIRONMENT = "environment"
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class Caller:
    """Who calls. An operator names the tenant of each request, `default` unless said."""

    tenant: str
    operator: bool
    name: str  # a stored key's id, ENVIRONMENT or LOOPBACK; of a token, its maker's
    token: SessionToken | None = None
    digest: bytes | None = field(default=None, repr=False)  # of an environment's key

    @property
    def limited(self) -> bool:
        """Whether rates hold for the caller: for all but operators who showed a key."""
        return not self.operator or self.name == LOOPBACK

    def proof(self, token: str) -> str:
        """What shows, to who knows the caller's key and the token, that the one made the other.

        Nothing that is stored, nor the token, tells anything about a key that people chose.
        """
        return "" if self.digest is None else _proof(self.digest, token)


class Keyring:
    """The environment's keys, as hashes, and whom they belong to; and whether there are any."""

    def __init__(self, settings: Settings) -> None:
        self._tenants: Mapping[bytes, str] = {
            _digest(entry.key.get_secret_value()): entry.tenant for entry in settings.api_keys
        }
        self._operators = {_digest(key.get_secret_value()) for key in settings.operator_keys}
        self.origins = frozenset(settings.cors_origins)
        self._open: bool | None = False if settings.has_keys else None  # None: not yet known

    @property
    def operated(self) -> bool:
        """Whether the environment has an operator's key."""
        return bool(self._operators)

    async def is_open(self, access: Access) -> bool:
        """Whether everybody on this machine may come in: no key in the environment, and none was
        ever stored. Asked of Redis each time, until it says no.

        Raises:
            StoreUnavailable: Redis is away, and never told. Else what it said last holds.
        """
        if self._open is not False:
            try:
                self._open = not await access.keyed()
            except StoreUnavailable:
                if self._open is None:
                    raise
        return self._open

    async def caller(self, key: str | None, access: Access) -> Caller:
        """Whose key it is.

        Raises:
            Problem: no key, or an unknown one.
        """
        is_open = await self.is_open(access)
        if key is not None and key.startswith(TOKEN_PREFIX):
            return await self._bearer(key, access, is_open)
        if is_open:
            return Caller(DEFAULT_TENANT, operator=True, name=LOOPBACK)
        if key is None:
            raise _unauthorized("this server asks for a key")
        # Looked up by hash: how long that takes tells nothing about keys that are close.
        shown = _digest(key)
        if shown in self._operators:
            return Caller(DEFAULT_TENANT, operator=True, name=ENVIRONMENT, digest=shown)
        if shown in self._tenants:
            return Caller(self._tenants[shown], operator=False, name=ENVIRONMENT, digest=shown)
        stored = await access.key(key)
        if stored is None:
            raise _unauthorized("this key is not known here, was revoked, or has expired")
        return Caller(stored.tenant, stored.role == "operator", stored.id)

    async def _bearer(self, text: str, access: Access, is_open: bool) -> Caller:
        """The caller of a session token, which counts only while its maker may come in."""
        token = await access.token(text)
        if token is None or not self._stands(token, text, is_open):
            raise Problem(
                "unauthorized",
                "this session token is unknown, has expired, or went with its session or key: "
                "whoever holds the key makes a new one with POST /sessions/{id}/tokens",
                headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
            )
        return Caller(token.tenant, operator=False, name=token.maker, token=token)

    def _stands(self, token: SessionToken, text: str, is_open: bool) -> bool:
        if token.maker == LOOPBACK:
            return is_open
        if token.maker != ENVIRONMENT:
            return True  # a stored key, which was looked up with the token
        of_tenant = [key for key, tenant in self._tenants.items() if tenant == token.tenant]
        makers = [*of_tenant, *self._operators]
        return any(hmac.compare_digest(_proof(key, text), token.proof) for key in makers)


_bearer = HTTPBearer(auto_error=False, description="A client's or operator's key, or a token")


async def caller(
    request: Request,
    running: Running,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    x_tenant: Annotated[
        str | None, Header(description="operators only: the tenant to act for")
    ] = None,
) -> Caller:
    """The caller of a request.

    Raises:
        Problem: no or an unknown key, a tenant that is not the caller's, or a foreign host name.
    """
    keyring: Keyring = request.app.state.keyring
    key = credentials.credentials if credentials else None
    try:
        found = await keyring.caller(key, running.store.access)
    except StoreUnavailable as error:  # a valid key does not help: that is worth saying
        logger.warning("nobody can come in: %s", error)
        raise Problem("unavailable", "Redis is away, and with it the keys: try again") from error
    if found.name == LOOPBACK:
        _check_host(request)
        _check_page(request, keyring.origins)
    if x_tenant is not None and x_tenant != found.tenant:
        found = _acting(found, x_tenant)
    logs.note(tenant=found.tenant)
    return found


def _acting(who: Caller, tenant: str) -> Caller:
    """An operator as one who acts for another tenant."""
    if not who.operator:
        raise Problem("forbidden", "X-Tenant names another tenant than this key's: leave it out")
    if not re.fullmatch(TENANT_PATTERN, tenant):
        raise invalid("X-Tenant", f"must match {TENANT_PATTERN}", location="header")
    return replace(who, tenant=tenant)


Calling = Annotated[Caller, Depends(caller)]


async def check_still(request: Request, running: Runtime) -> None:
    """Make sure that what a request came in with would still open the door.

    Raises:
        Problem: the key was revoked, the token has expired, or went with its session.
    """
    credentials = await _bearer(request)
    keyring: Keyring = request.app.state.keyring
    with suppress(StoreUnavailable):  # nobody can tell now; what comes later is checked again
        await keyring.caller(credentials.credentials if credentials else None, running.store.access)


def _check_page(request: Request, origins: Collection[str]) -> None:
    """A page of another host may send requests without a body to this port, unasked: where nobody
    shows a key, it may not change anything."""
    if request.method in _READING:
        return
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    foreign = origin is not None and origin not in origins and urlsplit(origin).netloc != host
    if foreign or (origin is None and request.headers.get("sec-fetch-site") == "cross-site"):
        raise Problem(
            "forbidden",
            f"a page of {origin or 'another host'} may not change anything here: name it in "
            "INNERLOOP_CORS_ORIGINS, or set INNERLOOP_API_KEYS",
        )


def _check_host(request: Request) -> None:
    """Without keys, a page elsewhere could reach this port under a name of its own (DNS rebinding);
    only loopback names are answered."""
    name = request.url.hostname or ""
    if not is_loopback(name):
        raise Problem(
            "forbidden",
            f"without keys this server answers to localhost only, not to {name!r}: "
            "set INNERLOOP_API_KEYS, or call it as 127.0.0.1",
        )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _proof(digest: bytes, token: str) -> str:
    return hmac.new(digest, token.encode(), hashlib.sha256).hexdigest()


def _unauthorized(reason: str) -> Problem:
    return Problem(
        "unauthorized",
        f"{reason}: send it as `Authorization: Bearer KEY`",
        headers={"WWW-Authenticate": "Bearer"},
    )
