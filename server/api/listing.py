"""`GET /sessions` and `GET /admin/sessions`: which sessions there are, page by page.

The same question to the store, once within the caller's tenant and once over all of them.
"""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from server.api.auth import Operator, Tenant
from server.api.context import Running
from server.api.problems import RESPONSES
from server.api.schemas import SessionAnswer
from server.api.sessions import wire
from server.runtime import Runtime
from server.settings import TENANT_PATTERN

router = APIRouter(responses=RESPONSES)


class SessionRow(SessionAnswer):
    """A session in a list."""

    tenant: str


class SessionsAnswer(BaseModel):
    """A page of sessions, and how many there are under the same filter."""

    total: int
    offset: int
    sessions: list[SessionRow]


class Wanted:
    """Which sessions, in which order."""

    def __init__(
        self,
        contains: Annotated[str, Query(max_length=128, description="part of the session id")] = "",
        taught: Annotated[
            bool | None, Query(description="only taught, or only untaught ones")
        ] = None,
        sort: Annotated[
            Literal["updated_at", "created_at", "session_id", "adapter_version", "items"], Query()
        ] = "updated_at",
        order: Annotated[Literal["asc", "desc"], Query()] = "desc",
        offset: Annotated[int, Query(ge=0, lt=2**53)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    ) -> None:
        self.contains, self.taught, self.sort, self.order = contains, taught, sort, order
        self.offset, self.limit = offset, limit

    async def page(self, running: Runtime, tenant: str | None) -> SessionsAnswer:
        """Of a tenant, or of all with None."""
        found = await running.store.sessions(
            tenant,
            offset=self.offset,
            limit=self.limit,
            contains=self.contains,
            taught=self.taught,
            sort="version" if self.sort == "adapter_version" else self.sort,
            descending=self.order == "desc",
        )
        rows = [SessionRow(tenant=p.tenant, **wire(p).model_dump()) for p in found.sessions]
        return SessionsAnswer(total=found.total, offset=self.offset, sessions=rows)


Filter = Annotated[Wanted, Depends()]
TenantQuery = Annotated[
    str | None, Query(pattern=TENANT_PATTERN, description="one tenant's sessions; all without it")
]


@router.get("/sessions", response_model=SessionsAnswer, tags=["sessions"])
async def own_sessions(tenant: Tenant, running: Running, wanted: Filter) -> SessionsAnswer:
    """The tenant's sessions by page, with filter and order."""
    return await wanted.page(running, tenant)


@router.get("/admin/sessions", response_model=SessionsAnswer, tags=["admin"])
async def all_sessions(
    _: Operator, running: Running, wanted: Filter, tenant: TenantQuery = None
) -> SessionsAnswer:
    """Sessions by page, with filter and order."""
    return await wanted.page(running, tenant)
