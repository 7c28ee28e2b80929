"""The client's calls by aiohttp: as many connections as there are requests under way.

httpx, by which the client itself sends, looks through all its connections for every request: with
three hundred under way it was seconds behind the clock, and its own queue looked like the server's.
"""

import codecs
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import aiohttp

from innerloop import InnerloopError
from innerloop.calls import Call
from innerloop.errors import error_of

KEEPALIVE_S = 3.0
"""Below the 5 s after which the server closes an idle connection: one it is closing fails."""


class Failed(Exception):
    """A request failed: what it was for, and how."""

    def __init__(self, deed: str, kind: str) -> None:
        super().__init__(f"{deed}: {kind}")
        self.deed = deed
        self.kind = kind


@contextmanager
def failing(deed: str) -> Iterator[None]:
    """Turn errors of a request into `Failed`, with a kind of which there are few."""
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        raise Failed(deed, "no connection") from error
    except TimeoutError as error:
        raise Failed(deed, "timed out") from error
    except (aiohttp.ClientError, ValueError) as error:
        raise Failed(deed, "broke off") from error
    except InnerloopError as error:
        raise Failed(deed, str(error.status or "broke off")) from error


class Http:
    """A server's address, and connections to it."""

    def __init__(self, url: str, key: str | None, timeout_s: float) -> None:
        """``timeout_s`` bounds each silence. Make it where an event loop runs."""
        self._url = url.rstrip("/")
        self._session = aiohttp.ClientSession(
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
        )

    async def send(self, call: Call) -> Any:
        """Send a call once; gives its JSON, None where there is none.

        Raises:
            InnerloopError, aiohttp.ClientError, TimeoutError.
        """
        async with self._sent(call) as response:
            content = await response.read()
        return json.loads(content) if content else None

    async def stream(self, call: Call) -> AsyncIterator[str]:
        """Send a call once; gives its answer's text as it comes.

        Raises:
            InnerloopError, aiohttp.ClientError, TimeoutError.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        async with self._sent(call) as response:
            async for piece in response.content.iter_any():
                yield decoder.decode(piece)

    @asynccontextmanager
    async def _sent(self, call: Call) -> AsyncIterator[aiohttp.ClientResponse]:
        options = call.options()
        url = self._url + options.pop("url")
        async with self._session.request(options.pop("method"), url, **options) as response:
            if not response.ok:
                raise error_of(response.status, await _problem(response))
            yield response

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()


async def _problem(response: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        document = json.loads(await response.read())
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
