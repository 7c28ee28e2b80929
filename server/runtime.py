"""Everything a running server owns, started in order and stopped in reverse.

It knows every room's front door and no HTTP.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import torch

from adapters.artifact import Artifact, load_artifact
from adapters.chat import ChatEncoder
from server.engine import Engine, EngineLimits
from server.flows.answering import Answering
from server.flows.background import Background
from server.flows.deriving import Deriver
from server.flows.encoding import Encoding
from server.flows.locks import SessionLocks
from server.flows.rebuilding import Rebuilder
from server.flows.teaching import Teacher
from server.sessions import EmbeddedRedis, SessionStore
from server.settings import Settings, SettingsError, model_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Runtime:
    """A running server without its HTTP face."""

    settings: Settings
    artifact: Artifact
    store: SessionStore
    engine: Engine
    encoding: Encoding
    answering: Answering
    teacher: Teacher
    rebuilder: Rebuilder
    background: Background


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Runtime]:
    """Start Redis, the model and the engine; stop them in reverse order.

    Raises:
        SettingsError: no such model or device.
        SessionStoreError: Redis cannot be started or reached, or the data folder is in use.
        ArtifactError, EngineError: the model cannot be served.
    """
    folder, device = model_folder(settings.model), pick_device(settings.device)
    async with AsyncExitStack() as stack:
        url = settings.redis_url
        if url is None:
            redis = EmbeddedRedis(settings.data_dir)
            stack.push_async_callback(asyncio.to_thread, redis.stop)
            await asyncio.to_thread(redis.start)
            url = redis.url
        store = await stack.enter_async_context(await SessionStore.open(url))
        artifact = await asyncio.to_thread(load_artifact, folder, device)
        engine = Engine(artifact, engine_limits(settings, artifact))
        engine.start()
        stack.push_async_callback(engine.stop, 0.0)  # whoever asked it something is gone by then
        runtime = assemble(settings, artifact, store, engine)
        runtime.background.start(alone=settings.redis_url is None)
        logger.info("serving %s on %s", artifact.name, device)
        drain_s = 0.0
        try:
            yield runtime
            drain_s = settings.drain_s
        finally:
            await runtime.background.stop(drain_s)


def assemble(
    settings: Settings, artifact: Artifact, store: SessionStore, engine: Engine
) -> Runtime:
    """Put the flows on top of an engine and a store; starts nothing."""
    encoding = Encoding(ChatEncoder(artifact.tokenizer))
    deriver, locks = Deriver(artifact, engine, encoding), SessionLocks()
    teacher = Teacher(deriver, store, locks)
    rebuilder = Rebuilder(deriver, store, locks)
    answering = Answering(
        artifact, engine, store, encoding, rebuilder.mend, settings.completion_lifetime_s
    )
    background = Background(teacher, rebuilder, store)
    return Runtime(
        settings,
        artifact,
        store,
        engine,
        encoding,
        answering,
        teacher,
        rebuilder,
        background,
    )


def pick_device(device: str) -> torch.device:
    """The device that the setting means on this machine.

    Raises:
        SettingsError: a GPU that PyTorch does not see.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = torch.device(device)
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"INNERLOOP_DEVICE={device!r}: PyTorch sees {torch.cuda.device_count()} GPUs here "
            "(expected cpu, auto, or a GPU that is there)"
        )
    return wanted


def engine_limits(settings: Settings, artifact: Artifact) -> EngineLimits:
    """The engine's limits out of the settings: at least one adapter fits, whatever its size."""
    one_adapter = sum(tensor.nbytes for tensor in artifact.session_init.values())
    slots = max(1, settings.adapter_bytes // one_adapter)
    if slots < settings.rows:
        logger.warning(
            "INNERLOOP_ADAPTER_BYTES holds %d adapters of %d bytes: no more taught sessions than "
            "that are answered at once, of %d rows",
            slots,
            one_adapter,
            settings.rows,
        )
    return EngineLimits(
        rows=settings.rows,
        slots=slots,
        host_adapter_bytes=settings.host_adapter_bytes,
        kv_bytes=settings.kv_bytes,
        queue=settings.queue,
        patience_s=settings.patience_s,
        prefill_tokens=settings.prefill_tokens,
        prefix_cache_bytes=settings.prefix_cache_bytes,
        adapt_batch=settings.adapt_batch,
        threads=settings.threads or None,
    )
