"""What every route needs of the application it runs in."""

from typing import Annotated

from fastapi import Depends, Path, Request

from server.api.schemas import (
    SESSION_ID_PATTERN,
)
from server.runtime import Runtime


def runtime(request: Request) -> Runtime:
    """The running server behind the application."""
    found: Runtime = request.app.state.runtime
    return found


Running = Annotated[Runtime, Depends(runtime)]
SessionPath = Annotated[
    str, Path(pattern=SESSION_ID_PATTERN, description="1 to 128 of letters, digits and . _ : @ -")
]
VersionPath = Annotated[int, Path(ge=1, lt=2**53, description="a kept version")]
