"""Who calls: a client of one tenant, or an operator.

Without configured keys the server serves its own machine only, and the caller is everybody: the
tenant `default` and operator. It knows keys and headers, not what they open.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from server.api.problems import Problem, invalid
from server.settings import TENANT_PATTERN, Settings, is_loopback

DEFAULT_TENANT = "default"


@dataclass(frozen=True)
class Caller:
    """Who calls. An operator names the tenant of each request, `default` unless said."""

    tenant: str
    operator: bool


class Keyring:
    """The configured keys, as hashes, and whom they belong to."""

    def __init__(self, settings: Settings) -> None:
        self.open = not settings.has_keys
        self._tenants: Mapping[bytes, str] = {
            _digest(entry.key.get_secret_value()): entry.tenant for entry in settings.api_keys
        }
        self._operators = {_digest(key.get_secret_value()) for key in settings.operator_keys}

    def caller(self, key: str | None) -> Caller:
        """Whose key it is.

        Raises:
            Problem: no key, or an unknown one.
        """
        if self.open:
            return Caller(DEFAULT_TENANT, operator=True)
        if key is None:
            raise _unauthorized("this server asks for a key")
        # Looked up by hash: how long that takes tells nothing about keys that are close.
        shown = _digest(key)
        if shown in self._operators:
            return Caller(DEFAULT_TENANT, operator=True)
        if shown not in self._tenants:
            raise _unauthorized("this key is not known here")
        return Caller(self._tenants[shown], operator=False)


_bearer = HTTPBearer(auto_error=False, description="A client's or an operator's key")


def caller(
    request: Request,
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
    if keyring.open:
        _check_host(request)
    found = keyring.caller(credentials.credentials if credentials else None)
    if x_tenant is None or x_tenant == found.tenant:
        return found
    if not found.operator:
        raise Problem("forbidden", "X-Tenant names another tenant than this key's: leave it out")
    if not re.fullmatch(TENANT_PATTERN, x_tenant):
        raise invalid("X-Tenant", f"must match {TENANT_PATTERN}", location="header")
    return Caller(x_tenant, operator=True)


def tenant(who: Annotated[Caller, Depends(caller)]) -> str:
    """The tenant whose sessions the request is about."""
    return who.tenant


def operator(who: Annotated[Caller, Depends(caller)]) -> Caller:
    """The caller, who has to be an operator.

    Raises:
        Problem: a client's key.
    """
    if not who.operator:
        raise Problem("forbidden", "this route is for operators: use an operator key")
    return who


Tenant = Annotated[str, Depends(tenant)]
Operator = Annotated[Caller, Depends(operator)]


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


def _unauthorized(reason: str) -> Problem:
    return Problem(
        "unauthorized",
        f"{reason}: send it as `Authorization: Bearer KEY`",
        headers={"WWW-Authenticate": "Bearer"},
    )
