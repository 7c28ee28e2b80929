"""The server as a process: its socket, its signals, its log, and its one line when it is ready."""

import asyncio
import errno
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
from server.runtime import running
from server.sessions import SessionStoreError
from server.settings import Settings

BACKLOG = 2048
INTERRUPTED = 130


class StartError(RuntimeError):
    """The server cannot start; the message says what to do."""


def serve(settings: Settings) -> int:
    """Serve until a signal ends it; returns the exit code.

    Raises:
        SettingsError: a setting that only this machine can judge, such as the model's folder.
        StartError: the port or data folder is taken, Redis is missing, the model does not load.
    """
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    listener = listen(settings.host, settings.port)
    try:
        return asyncio.run(_serve(settings, listener))
    except (SessionStoreError, AdapterError, EngineError) as error:
        raise StartError(str(error)) from error
    finally:
        listener.close()


def listen(host: str, port: int) -> socket.socket:
    """Take the port before anything else is started, so that nobody waits for a model in vain.

    Clients that connect while the model loads are answered when it is there.

    Raises:
        StartError: the port is in use or not allowed, or there is no such host.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise StartError(
            f"INNERLOOP_HOST={host!r} is no address of this machine: {error}"
        ) from error
    # "localhost" is both ::1 and 127.0.0.1; clients try the latter at least.
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(_explain(error, host, port)) from error
    return listener


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is in use: end what uses it, or choose another with --port "
            "(0 picks a free one)"
        )
    if error.errno == errno.EACCES:
        return f"port {port} on {host} is not allowed to you: choose one above 1023 with --port"
    return f"cannot serve on {host} port {port}: {error.strerror}"


async def _serve(settings: Settings, listener: socket.socket) -> int:
    stop = _Stop()
    try:
        async with running(settings) as runtime:
            server = _Server(
                uvicorn.Config(
                    attach(runtime),
                    lifespan="off",  # the runtime's life is around it
                    log_config=None,
                    backlog=BACKLOG,
                    timeout_graceful_shutdown=settings.drain_s,
                ),
                ready=f"innerloop is ready at {_url(listener)} (model {runtime.artifact.name})",
            )
            stop.server = server
            await server.serve(sockets=[listener])
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


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
