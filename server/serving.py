"""The server as a process: its signals, its log, and its one line when it is ready."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from adapters.config import AdapterError
from server.app import attach
from server.engine import EngineError
from server.listener import BACKLOG, StartError, address_of
from server.runtime import running
from server.sessions import SessionStoreError
from server.settings import Settings

INTERRUPTED = 130


def serve(settings: Settings, listener: socket.socket) -> int:
    """Serve on ``listener`` until a signal ends it; returns the exit code.

    Raises:
        SettingsError: a setting that only this machine can judge, such as the model's folder.
        StartError: the data folder is taken, Redis is missing, the model does not load.
    """
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        return asyncio.run(_serve(settings, listener))
    except (SessionStoreError, AdapterError, EngineError) as error:
        raise StartError(str(error)) from error


async def _serve(settings: Settings, listener: socket.socket) -> int:
    stop = _Stop()
    try:
        async with running(settings) as runtime:
            config = uvicorn.Config(
                attach(runtime),
                lifespan="off",  # the runtime's life is around it
                log_config=None,
                backlog=BACKLOG,
                timeout_graceful_shutdown=settings.drain_s,
            )
            model = runtime.artifact.name
            ready = f"innerloop is ready at {address_of(listener)} (model {model})"
            stop.server = _Server(config, ready)
            await stop.server.serve(sockets=[listener])
    except asyncio.CancelledError:
        return INTERRUPTED
    return 0


class _Server(uvicorn.Server):
    """Uvicorn, which says when it is ready and leaves signals to us."""

    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        print(self._ready, flush=True)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn would raise them again while Redis is being stopped."""
        yield


class _Stop:
    """What Ctrl-C and SIGTERM do: first finish what is under way, then end it, then give up."""

    def __init__(self) -> None:
        self.server: uvicorn.Server | None = None
        self._task = asyncio.current_task()
        self._asked = 0
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self)

    def __call__(self) -> None:
        self._asked += 1
        if self._asked == 1 and self.server is not None:
            self.server.should_exit = True
        elif self._asked <= 2 and self._task is not None:
            self._task.cancel()
        else:
            os._exit(INTERRUPTED)  # the child Redis ends with us
