"""Everything a running server owns, started in order and stopped in reverse.

It knows every room's front door and no HTTP.
"""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

import torch

from adapters.artifact import Artifact, load_served
from adapters.chat import ChatEncoder
from adapters.device import DeviceError, pick_device
from server import spans
from server.engine import Engine, EngineLimits
from server.flows.answering import Answering
from server.flows.background import Background
from server.flows.choosing import Chooser
from server.flows.deriving import Deriver
from server.flows.encoding import Encoding
from server.flows.housing import Houses
from server.flows.importing import Importer
from server.flows.influence import Influences
from server.flows.loading import Loader
from server.flows.locks import SessionLocks
from server.flows.rebuilding import Rebuilder
from server.flows.spending import Spending, budgets
from server.flows.teaching import Teacher
from server.flows.watching import Watching
from server.sessions import EmbeddedRedis, Fit, Replica, SessionStore
from server.settings import (
    SAFE_KEY_CHARS,
    Settings,
    SettingsError,
    model_folder,
    package_version,
)
from server.telemetry import Telemetry

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
    chooser: Chooser
    teacher: Teacher
    rebuilder: Rebuilder
    houses: Houses
    importer: Importer
    influences: Influences
    background: Background
    telemetry: Telemetry
    watching: Watching


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Runtime]:
    """Start Redis, the model and the engine; stop them in reverse order.

    Raises:
        SettingsError: no such model or device, or memory in which nothing can be answered.
        SessionStoreError: Redis cannot be started or reached, or the data folder is in use.
        ArtifactError, EngineError: the model cannot be served.
    """
    folder, device = model_folder(settings.model), device_of(settings)
    if settings.guessable_keys:
        logger.warning(
            "%d of the environment's keys have fewer than %d characters, and other machines can "
            "reach %s: whoever tries many may find them; draw longer ones (openssl rand -hex 32)",
            settings.guessable_keys,
            SAFE_KEY_CHARS,
            settings.host,
        )
    async with AsyncExitStack() as stack:
        if spans.wanted():
            try:
                end = spans.enable(package_version())
            except spans.SpansMissing as error:
                raise SettingsError(str(error)) from error
            stack.push_async_callback(asyncio.to_thread, end)
        url = settings.redis_url
        if url is None:
            redis = EmbeddedRedis(settings.data_dir)
            stack.push_async_callback(asyncio.to_thread, redis.stop)
            await asyncio.to_thread(redis.start)
            url = redis.url
        opened = await SessionStore.open(
            url,
            history_versions=settings.history_versions,
            history_snapshots=settings.history_snapshots,
            replicas=settings.redis_replicas,
            fsync=settings.redis_fsync,
            shared=False,
        )
        store = await stack.enter_async_context(opened)
        artifact = await asyncio.to_thread(load_served, folder, device, settings.encoder)
        artifact = artifact.with_margin(settings.gate_margin)
        replica = None if settings.redis_url is None else replica_of(settings, artifact, store)
        if replica is not None:
            await replica.join(allow_mixed=settings.allow_mixed)
            stack.push_async_callback(replica.leave)
        engine = Engine(artifact, engine_limits(settings, artifact))
        check_kv(settings.kv_bytes, engine, artifact.context_tokens)
        engine.start()
        stack.push_async_callback(engine.stop, 0.0)  # whoever asked it something is gone by then
        runtime = assemble(settings, artifact, store, engine)
        if replica is not None:
            runtime.telemetry.watch_replicas(lambda: replica.live)
        runtime.background.start(replica)
        gate = "no sentence encoder" if artifact.encoder is None else artifact.encoder
        if settings.gate_margin:
            known = "without effect: it has none" if artifact.rule.gate is None else "at its gate"
            logger.info("gate_margin %g, %s", settings.gate_margin, known)
        logger.info("serving %s on %s, with %s at its gate", artifact.name, device, gate)
        stack.enter_context(settled())
        drain_s = 0.0
        try:
            yield runtime
            drain_s = settings.drain_s
        finally:
            runtime.watching.close()
            await runtime.background.stop(drain_s)


@contextmanager
def settled() -> Iterator[None]:
    """Leave what is there already out of garbage collections: it is large and stays.

    The libraries' 400,000 objects take a quarter of a second to look at, in which nobody's text
    goes on.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def assemble(
    settings: Settings, artifact: Artifact, store: SessionStore, engine: Engine
) -> Runtime:
    """Put the flows on top of an engine and a store; starts nothing."""
    encoding = Encoding(ChatEncoder(artifact.tokenizer))
    spending = Spending(store.access, budgets(settings))
    deriver = Deriver(artifact, engine, encoding, spending, settings.snapshot_precision)
    locks = SessionLocks()
    telemetry = Telemetry()
    houses = Houses(Loader(artifact, store), store, Rebuilder(deriver, store, locks))
    teacher = Teacher(deriver, store, locks, houses, telemetry.learned)
    rebuilder = Rebuilder(deriver, store, locks, houses)
    chooser = Chooser(artifact, engine, store, rebuilder, houses)
    answering = Answering(
        artifact,
        engine,
        store,
        encoding,
        chooser,
        spending,
        settings.completion_lifetime_s,
        settings.recall,
        settings.in_context,
    )
    background = Background(
        teacher, rebuilder, store, settings.session_lifetime_s, settings.takeover_s
    )
    return Runtime(
        settings,
        artifact,
        store,
        engine,
        encoding,
        answering,
        chooser,
        teacher,
        rebuilder,
        houses,
        Importer(artifact, store),
        Influences(store, deriver, houses),
        background,
        telemetry,
        Watching(store),
    )


SHARED_SETTINGS = (
    "session_lifetime_s",
    "history_versions",
    "history_snapshots",
    "completion_lifetime_s",
    "snapshot_precision",
    "recall",
    "gate_margin",
    "in_context",
    "halvings",
)
"""What a session is like depends on them, whichever replica has it."""


def replica_of(settings: Settings, artifact: Artifact, store: SessionStore) -> Replica:
    """This server's place beside others on the same Redis."""
    name = artifact.name if artifact.encoder is None else f"{artifact.name} with {artifact.encoder}"
    fit = Fit(name, artifact.fingerprint, artifact.rule_hash)
    return store.replica(fit, {name: getattr(settings, name) for name in SHARED_SETTINGS})


def device_of(settings: Settings) -> torch.device:
    """The device that the setting means on this machine.

    Raises:
        SettingsError: a GPU that PyTorch does not see.
    """
    try:
        return pick_device(settings.device)
    except DeviceError as error:
        raise SettingsError(f"INNERLOOP_DEVICE={error}") from error


def check_kv(kv_bytes: int, engine: Engine, context_tokens: int) -> None:
    """See that answers can be written in the KV memory, and say so where long ones cannot.

    Raises:
        SettingsError: not even the shortest.
    """
    least, whole = engine.kv_bytes_of(1), engine.kv_bytes_of(context_tokens)
    if kv_bytes < least:
        raise SettingsError(
            f"INNERLOOP_KV_BYTES={kv_bytes}: nothing can be answered in that, a short sequence "
            f"takes {least} bytes, and one of the model's context of {context_tokens} tokens "
            f"{whole}"
        )
    if kv_bytes < whole:
        logger.warning(
            "INNERLOOP_KV_BYTES=%d: requests that need the model's whole context of %d tokens are "
            "refused, they take %d bytes",
            kv_bytes,
            context_tokens,
            whole,
        )


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
        halvings=settings.halvings,
        kernels=settings.kernels,
        threads=settings.threads or None,
    )
