"""A whole server inside the test process: real engine, real Redis, real HTTP on a free port."""

import asyncio
import itertools
import threading
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import pytest
import uvicorn

from server.app import attach
from server.listener import listen
from server.runtime import Runtime, running
from server.settings import Settings

T = TypeVar("T")
HANG_S = 600.0
"""No machine is so slow."""


def make_settings(model: Path, data_dir: Path, **values: Any) -> Settings:
    # Slots are made at the start, and a stopped server's stay until Python collects them: with the
    # default of 256 MB a run of all tests took 8 GB.
    values = {"adapter_bytes": 16 * 1024**2, **values}
    return Settings(model=str(model), data_dir=data_dir, threads=1, port=0, **values)


class LiveServer:
    """One runtime, served once per element of `faces` (other settings, same engine and Redis)."""

    def __init__(self, settings: Settings, faces: Sequence[dict[str, Any]] = ({},)) -> None:
        self._settings = settings
        self._faces = faces
        self._up: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="live-server")
        self.urls: list[str] = []
        self.runtime: Runtime

    def __enter__(self) -> Self:
        self._thread.start()
        self._up.result(timeout=HANG_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def client(self, face: int = 0, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.urls[face], timeout=HANG_S, **options)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the server's event loop, for what HTTP does not show."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=HANG_S)

    @contextmanager
    def held_after(self, steps: int) -> Iterator[threading.Event]:
        """Hold the engine after so many steps of decoding, until it is stopped or the block ends.

        The event says that it stands still.
        """
        worker = self.runtime.engine._worker
        batch, still, go = worker._traffic.batch, threading.Event(), threading.Event()
        step, left = batch.step, itertools.count(steps, -1)

        def held() -> None:
            if next(left) <= 0:
                still.set()
                while not (worker._closed or go.wait(0.02)):
                    pass
            step()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batch, "step", held)
            try:
                yield still
            finally:
                go.set()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._up.done():
                raise
            self._up.set_exception(error)

    async def _serve(self) -> None:
        self.loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        async with running(self._settings) as self.runtime:
            servers, tasks, sockets = [], [], []
            for face in self._faces:
                # Not merged with model_copy alone: the checks of Settings have to see it.
                settings = Settings(**{**self._settings.model_dump(), **face})
                app = attach(replace(self.runtime, settings=settings))
                # A connection that is closed just as a test sends something on it is no answer.
                config = uvicorn.Config(
                    app, lifespan="off", log_config=None, timeout_keep_alive=int(HANG_S)
                )
                listener = listen("127.0.0.1", 0)
                sockets.append(listener)
                self.urls.append(f"http://127.0.0.1:{listener.getsockname()[1]}")
                servers.append(_Server(config))
                tasks.append(asyncio.create_task(servers[-1].serve(sockets=[listener])))
            while not all(server.started for server in servers):
                await asyncio.sleep(0.01)
            self._up.set_result(None)
            await self._end.wait()
            for server in servers:
                server.should_exit = True
            await asyncio.gather(*tasks)
            for listener in sockets:
                with suppress(OSError):
                    listener.close()


class _Server(uvicorn.Server):
    def capture_signals(self) -> Any:
        return nullcontext()  # signals are the test runner's
