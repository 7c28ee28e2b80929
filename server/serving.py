"""The server as a process: its signals, its log, and its one line when it is ready."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn
from transformers.utils import logging as transformers_logging

from adapters.config import AdapterError
from server import logs
from server.app import attach
from server.engine import EngineError
from server.listener import BACKLOG, StartError, address_of, explain
from server.runtime import running
from server.sessions import SessionStoreError
from server.settings import Settings

logger = logging.getLogger(__name__)

INTERRUPTED = 130
SAY = partial(print, flush=True)


def serve(settings: Settings, listener: socket.socket) -> int:
    """Serve on ``listener`` until a signal ends it; returns the exit code.

    Raises:
        SettingsError: a setting that only this machine can judge, such as the model's folder.
        StartError: the data folder is taken, Redis is missing, the model does not load.
    """
    logs.configure(settings.log_level, settings.log_format)
    quieten_transformers()
    try:
        return asyncio.run(_serve(settings, listener))
    except (SessionStoreError, AdapterError, EngineError) as error:
        raise StartError(str(error)) from error


def quieten_transformers() -> None:
    """Have its messages in our log, in our form, and no progress bars between the lines."""
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()


async def _serve(settings: Settings, listener: socket.socket) -> int:
    stop = Stop()
    try:
        async with running(settings) as runtime:
            app = attach(runtime)

            def stopping() -> None:
                app.state.stopping = True

            about = f"model {runtime.artifact.name}"
            stop.server = server_on(
                listener, app, settings, about, stopping, runtime.watching.close
            )
            await stop.server.serve(sockets=[listener])
    except asyncio.CancelledError:
        return INTERRUPTED
    return 0


def server_on(
    listener: socket.socket,
    app: Any,
    settings: Settings,
    about: str,
    stopping: Callable[[], None],
    end_listening: Callable[[], None],
    say: Callable[[str], None] = SAY,
) -> "Server":
    """A server of the ASGI application ``app``, to be served on ``listener``.

    It calls ``say`` with its one line when it is ready, ``stopping`` when it shall end, and
    ``end_listening`` when it takes nothing new.
    """
    config = uvicorn.Config(
        app,
        lifespan="off",  # what an application owns lives around the server
        log_config=None,
        access_log=False,  # ours names the request and no query
        backlog=BACKLOG,
        timeout_graceful_shutdown=settings.drain_s,
    )
    ready = f"innerloop is ready at {address_of(listener)} ({about})"
    return Server(config, lambda: say(ready), stopping, settings.shutdown_delay_s, end_listening)


class Server(uvicorn.Server):
    """Uvicorn, which says when it is ready and leaves signals to us."""

    def __init__(
        self,
        config: uvicorn.Config,
        ready: Callable[[], None],
        stopping: Callable[[], None],
        delay_s: float,
        end_listening: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._ready = ready
        self._stopping = stopping
        self._delay_s = delay_s
        self._end_listening = end_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        try:
            await super().startup(sockets=sockets)
        except OSError as error:  # two replicas that started at once, for one
            assert sockets is not None
            raise StartError(explain(error, *sockets[0].getsockname()[:2])) from error
        self._ready()

    def end(self) -> None:
        """Say so at `/readyz`, for as long as load balancers need to notice, then take nothing."""
        self._stopping()
        if not self._delay_s:
            self.should_exit = True
            return
        logger.info("stopping: not ready any more, and closed in %g s", self._delay_s)
        asyncio.get_running_loop().call_later(self._delay_s, self._close)

    def _close(self) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is under way."""
        self._end_listening()  # streams without an end of their own would be waited for
        await super().shutdown(sockets=sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn would raise them again while Redis is being stopped."""
        yield


class Stop:
    """What Ctrl-C and SIGTERM do: first finish what is under way, then end it, then give up."""

    def __init__(self) -> None:
        self.server: Server | None = None
        self._task = asyncio.current_task()
        self._asked = 0
        self.listen()

    def listen(self) -> None:
        """Take the signals, also from a library that took them meanwhile."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self)

    def __call__(self) -> None:
        """Do what the signal asks for, more urgently each time."""
        self._asked += 1
        if self._asked == 1 and self.server is not None:
            self.server.end()
        elif self._asked <= 2 and self._task is not None:
            self._task.cancel()
        else:
            os._exit(INTERRUPTED)  # the child Redis ends with us
