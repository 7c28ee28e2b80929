"""One replica: the whole server in a Ray actor, with requests and answers instead of a socket."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing

from ray import serve

from server import logs
from server.api.carrying import Carried, Messages, Whole, perform, whole
from server.app import attach
from server.runtime import running
from server.serving import quieten_transformers
from server.settings import Settings

RANK_HEADER = b"x-innerloop-replica"


class Replica:
    """What Serve makes of the deployment, in a process of its own.

    The arguments are pickled by Ray: settings keep their secrets hidden in logs.
    """

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        """Start the server's insides.

        Raises:
            SettingsError, SessionStoreError, AdapterError, EngineError: see `running`. A model
                other than that of a live replica on this Redis is a StoreRefused.
        """
        logs.configure(settings.log_level, settings.log_format)
        quieten_transformers()
        self._stack = AsyncExitStack()
        self._runtime = await self._stack.enter_async_context(running(settings))
        self._app = attach(self._runtime)

    @property
    def _rank(self) -> int:
        """From 0 to below the number of replicas; a restarted one takes its predecessor's."""
        rank: int = serve.get_replica_context().rank.rank
        return rank

    async def answer(self, request: Carried) -> AsyncGenerator[Messages, None]:
        """Answer one request; ends early when Serve cancels it, because the client has left."""
        named = (RANK_HEADER, str(self._rank).encode())
        async with aclosing(perform(self._app, request)) as parts:
            async for messages in parts:
                for message in messages:
                    if message["type"] == "http.response.start":
                        message["headers"] = [*message.get("headers", ()), named]
                yield messages

    async def answer_whole(self, request: Carried) -> tuple[int, Whole]:
        """Answer one request at once, with this replica's rank."""
        return self._rank, await whole(self._app, request)

    async def check_health(self) -> None:
        """Have Serve start another one where the engine has died. Raises RuntimeError."""
        if not self._runtime.engine.status().running:
            raise RuntimeError("the engine does not run: see the replica's log")

    async def __del__(self) -> None:
        """Stop; Serve awaits it once no request is under way any more, or time is up."""
        if hasattr(self, "_stack"):
            await self._stack.aclose()
