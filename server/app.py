"""The web application: every route on top of one runtime."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from server.api import (
    adapt,
    admin,
    generate,
    handlers,
    health,
    openai,
    pages,
    problems,
    sessions,
)
from server.api.auth import Keyring
from server.api.body_limit import BodyLimit
from server.runtime import Runtime, running
from server.settings import Settings, load_settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """An application whose lifespan starts Redis, model and engine and stops them in reverse.

    `uvicorn server.app:create_app --factory` serves it; the settings then come from the
    environment.

    Raises:
        SettingsError: a setting is wrong.
    """
    chosen = load_settings() if settings is None else settings

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running(chosen) as runtime:
            app.state.runtime = runtime
            yield

    app = _routes(chosen)
    app.router.lifespan_context = lifespan
    return app


def attach(runtime: Runtime) -> FastAPI:
    """An application over a runtime that somebody else starts and stops."""
    app = _routes(runtime.settings)
    app.state.runtime = runtime
    return app


def _routes(settings: Settings) -> FastAPI:
    app = FastAPI(
        title="innerloop",
        version=_version(),
        description="A language model that learns from feedback, per session, while it generates.",
        # FastAPI's own pages for these load their scripts from other hosts.
        docs_url=None,
        redoc_url=None,
    )
    app.state.keyring = Keyring(settings)
    app.state.started_at = int(time.time())
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    handlers.install(app)
    for room in (generate, adapt, sessions, openai, admin, health, problems, pages):
        app.include_router(room.router)
    return app


def _version() -> str:
    try:
        return version("innerloop")
    except PackageNotFoundError:  # run from a tree that was never installed
        return "0+unknown"
