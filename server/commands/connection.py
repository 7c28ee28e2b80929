"""A command's connection to its server: what goes wrong there becomes a line and an exit code."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx

from innerloop import Client, InnerloopError, Invalid, Unauthorized, Unavailable
from innerloop.calls import Call
from server.commands import AWAY, FAILED, WRONG, CommandError

TIMEOUT_S = 120.0
RETRIES = 2


@contextmanager
def connected(args: argparse.Namespace, retries: int = RETRIES) -> Iterator[Client]:
    """A client for the server that the arguments name, which asks ``retries`` times again.

    Raises:
        CommandError: in place of every error of the client.
    """
    _check(args.url, args.key)
    try:
        client = Client(args.url, api_key=args.key, timeout_s=TIMEOUT_S, retries=retries)
    except httpx.InvalidURL as error:
        raise CommandError(f"--url {args.url!r}: {error}", WRONG) from error
    try:
        with client:
            yield client
    except InnerloopError as error:
        raise explained(error, args.url) from error


def explained(error: InnerloopError, url: str) -> CommandError:
    """An error of the client, for somebody at a terminal."""
    if isinstance(error, Unavailable) and not error.status:
        return CommandError(
            f"no server answers at {url} ({error}): start one with `innerloop serve`, or name "
            "another with --url",
            AWAY,
        )
    if isinstance(error, Unavailable):
        return CommandError(str(error), AWAY)
    if isinstance(error, Unauthorized):
        return CommandError(f"{error}. Here that is --key KEY, or INNERLOOP_KEY", FAILED)
    return CommandError(str(error), WRONG if isinstance(error, Invalid) else FAILED)


def operators_call(
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    tenant: str | None = None,
    **query: Any,
) -> Call:
    """A call of an operator for a tenant, the key's own without one; what is None is left out."""
    return Call(
        method,
        path,
        body={name: value for name, value in (body or {}).items() if value is not None},
        headers={"X-Tenant": tenant} if tenant else {},
        query={name: value for name, value in query.items() if value is not None},
        done=404 if method == "DELETE" else 0,
    )


def session_path(session_id: str, *rest: str) -> str:
    """The operators' path of a session."""
    return "/".join(["/admin/sessions", quote(session_id, safe=""), *rest])


def _check(url: str, key: str | None) -> None:
    if not url.startswith(("http://", "https://")):
        raise CommandError(f"--url {url!r}: an address begins with http:// or https://", WRONG)
    if key is not None and not (key.isascii() and key.isprintable()):
        raise CommandError("--key: a key is printable ASCII in one line", WRONG)
