"""The web application: every route on top of one runtime."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware

from server.api import (
    adapt,
    admin,
    audit,
    events,
    feedback_batch,
    generate,
    handlers,
    health,
    house,
    influence,
    keys,
    listing,
    norms,
    openai,
    pages,
    problems,
    sessions,
    tokens,
)
from server.api.auth import Limits
from server.api.body_limit import BodyLimit
from server.api.documented import DocumentedApp
from server.api.heads import HeadAsGet
from server.api.keyring import Keyring
from server.api.observed import Observed
from server.api.queries import refuse_unknown
from server.runtime import Runtime, running
from server.settings import Settings, load_settings, package_version


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
    app = DocumentedApp(
        title="innerloop",
        version=package_version(),
        description="A language model that learns from feedback, per session, while it generates.",
        # FastAPI's own pages for these load their scripts from other hosts.
        docs_url=None,
        redoc_url=None,
    )
    app.state.keyring = Keyring(settings)
    app.state.limits = Limits(settings)
    app.state.stopping = False  # set while a load balancer is given time to notice
    app.state.started_at = int(time.time())
    app.add_middleware(
        BodyLimit,
        max_bytes=settings.max_body_bytes,
        max_import_bytes=settings.max_import_bytes,
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            # Never with cookies: whoever calls says who it is in a header of its own.
            allow_credentials=False,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["Location", "Retry-After"],
        )
    app.add_middleware(Observed)
    app.add_middleware(HeadAsGet)
    handlers.install(app)
    for room in (
        *(generate, adapt, feedback_batch, sessions, listing, house, events, tokens, openai),
        *(admin, norms, influence, keys, audit),
    ):
        app.include_router(room.router, dependencies=[Depends(refuse_unknown)])
    for room in (health, problems, pages):  # probes and links may carry anything
        app.include_router(room.router)
    return app
