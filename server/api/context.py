"""What every route needs of the application it runs in."""

from typing import Annotated

from fastapi import Depends, Header, Path, Request

from server.api.schemas import MORE_THAN_DOTS, SESSION_ID_PATTERN, SESSION_ID_RULE
from server.runtime import Runtime


def runtime(request: Request) -> Runtime:
    """The running server behind the application."""
    found: Runtime = request.app.state.runtime
    return found


Running = Annotated[Runtime, Depends(runtime)]
SessionPath = Annotated[
    str, Path(pattern=SESSION_ID_PATTERN, description=SESSION_ID_RULE), MORE_THAN_DOTS
]
VersionPath = Annotated[int, Path(ge=1, lt=2**53, description="a kept version")]
SessionHeader = Annotated[
    str | None,
    Header(
        alias="X-Session-ID",
        pattern=SESSION_ID_PATTERN,
        description="the session, for clients and proxies that set no field of the body",
    ),
    MORE_THAN_DOTS,
]
