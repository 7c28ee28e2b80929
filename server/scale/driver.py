"""`innerloop serve --replicas N`: replicas on Ray, and in this process their door and their Redis.

The socket, its signals and its one line are those of a plain server; so is the order at the end:
not ready any more, closed, requests finished, replicas stopped, Redis last.
"""

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, redirect_stderr, redirect_stdout
from functools import partial
from typing import Any, Final

import ray
from ray import serve

from server import logs
from server.api.ingress import Ingress
from server.listener import StartError
from server.scale.asking import ServeReplicas
from server.scale.deployment import QUIET, STOP_MARGIN_S, Scale, deployment, graceful_s
from server.scale.lines import JsonStream
from server.serving import INTERRUPTED, Stop, server_on
from server.sessions import EmbeddedRedis, SessionStoreError
from server.settings import Settings, SettingsError, model_folder

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES: Final = 100 * 1024**2
"""Of a Ray of our own: requests are small, and what is large in one is bounded by the settings."""
OWN_CLUSTER: Final = "local"


def serve_replicas(settings: Settings, listener: socket.socket) -> int:
    """Serve on ``listener`` until a signal ends it; returns the exit code.

    Raises:
        SettingsError: more replicas than fit here, or a setting that replicas cannot share.
        StartError: Ray, Redis or a replica does not start.
    """
    logs.configure(settings.log_level, settings.log_format)
    say = partial(print, file=sys.stdout, flush=True)
    shown = JsonStream(sys.stderr) if settings.log_format == "json" else sys.stderr
    try:
        with redirect_stdout(shown), redirect_stderr(shown):  # where Ray shows what replicas print
            return asyncio.run(_serve(settings, listener, say))
    except SessionStoreError as error:
        raise StartError(str(error)) from error


async def _serve(settings: Settings, listener: socket.socket, say: Callable[[str], None]) -> int:
    stop = Stop()
    try:
        async with _replicas(settings, application_of(listener)) as replicas:
            stop.listen()  # Ray took them
            door = Ingress(replicas, settings.max_body_bytes, settings.max_import_bytes)

            def stopping() -> None:
                door.stopping = True

            about = f"model {model_folder(settings.model).name}, {replicas.wanted} replicas"
            stop.server = server_on(
                listener, door, settings, about, stopping, door.end_listening, say
            )
            await stop.server.serve(sockets=[listener])
    except asyncio.CancelledError:
        return INTERRUPTED
    return 0


@asynccontextmanager
async def _replicas(settings: Settings, name: str) -> AsyncIterator[ServeReplicas]:
    """Start Ray, Redis and the replicas; stop them in reverse order."""
    scale = Scale(
        replicas=settings.replicas or 1,
        max_replicas=settings.max_replicas,
        cpus=settings.replica_cpus,
    )
    address = os.environ.get("RAY_ADDRESS") or OWN_CLUSTER
    async with AsyncExitStack() as stack:
        await asyncio.to_thread(_join, address)
        stack.push_async_callback(asyncio.to_thread, ray.shutdown)
        scale = scale.fitted(settings.device, ray.cluster_resources())
        if settings.redis_url is None:
            if len(ray.nodes()) > 1:
                raise SettingsError(
                    "this Ray cluster has several machines, and an embedded Redis is reached from "
                    "one only: name a Redis that all of them reach with INNERLOOP_REDIS_URL"
                )
            redis = EmbeddedRedis(settings.data_dir)
            stack.push_async_callback(asyncio.to_thread, redis.stop)
            await asyncio.to_thread(redis.start)
            settings = settings.model_copy(update={"redis_url": redis.url})
        handle = await asyncio.to_thread(_deploy, name, settings, scale)
        within_s = graceful_s(settings) + STOP_MARGIN_S
        stack.push_async_callback(asyncio.to_thread, _end, name, within_s)
        yield ServeReplicas(handle, scale.replicas)


def _join(address: str) -> None:
    """Connect to a Ray cluster, or start one on this machine.

    Raises:
        StartError: there is none at the address.
    """
    own: dict[str, Any] = {}
    if address == OWN_CLUSTER:
        own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(address, logging_level=logging.ERROR, **own)
    except Exception as error:  # the class that Ray itself raises after 30 s of a busy machine
        told = f"Ray at {address!r} cannot be used: {error}"
        if address != OWN_CLUSTER and "RAY_AUTH_MODE" not in os.environ:
            told += "; where the cluster asks for a token, set RAY_AUTH_MODE=token and have it here"
        raise StartError(told) from error


def application_of(listener: socket.socket) -> str:
    """What the replicas behind this socket are called on their cluster.

    No two servers that run have the same; one that was killed, and left its replicas on a cluster
    that is not its own, gets them back when it is started again.
    """
    host, port = listener.getsockname()[:2]
    return f"innerloop-{socket.gethostname()}-{host}-{port}"


def _deploy(name: str, settings: Settings, scale: Scale) -> Any:
    """Have Serve start the replicas, and wait until they answer.

    Raises:
        StartError: they do not start, with the reason of one of them.
    """
    told = logging.getLogger("ray.serve")
    told.setLevel(logging.WARNING)
    told.handlers, told.propagate = [], True  # into our log, in its form
    serve.start(proxy_location="Disabled", logging_config=QUIET)
    application = deployment(settings, scale)
    if name in serve.status().applications:
        logger.warning("taking over the replicas that a server killed at this address left")
    try:
        return serve.run(application, name=name, route_prefix=None)
    except RuntimeError as error:
        told = serve.status().applications[name].deployments["Replica"].message
        serve.delete(name)
        raise StartError(f"the replicas do not start: {_reason(told)}") from error


def _reason(told: str) -> str:
    """The error at the end of a traceback that Serve tells, else all of it."""
    lines = [line.strip() for line in told.strip().splitlines()]
    named = [line for line in lines if line.startswith("server.")]
    return named[-1] if named else " ".join(lines)


def _end(name: str, within_s: float) -> None:
    """Stop the replicas once they are done with what they have."""
    serve.delete(name, _blocking=False)  # blocking, it gives up after a minute
    until_s = time.monotonic() + within_s
    while name in serve.status().applications and time.monotonic() < until_s:
        time.sleep(0.2)
