"""`GET /admin/audit`, and how what operators do gets there.

An entry is written before its action, and an action whose entry cannot be written does not happen:
there is no change without an entry. Where the action then fails, another entry says so; one that
has none was done, or the server died over it.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from server.api.auth import Operator
from server.api.context import Running
from server.api.keyring import Caller
from server.api.problems import RESPONSES, Problem
from server.runtime import Runtime
from server.sessions import AUDIT_MAX, SessionStoreError

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/admin", tags=["admin"], responses=RESPONSES)


class AuditLine(BaseModel):
    """One thing that an operator did."""

    id: str
    at: float = Field(description="Unix time, seconds")
    who: str = Field(description="a stored key's id, `environment` or `loopback`")
    action: str
    outcome: str = Field(description="`begun`, or why it failed in a later entry of its own")
    tenant: str
    session_id: str | None = None
    fields: dict[str, str] = Field(description="such as the version gone back to")


class AuditAnswer(BaseModel):
    """A page of the audit log, newest first."""

    total: int = Field(description=f"entries that are kept: the newest {AUDIT_MAX} or a few more")
    offset: int
    entries: list[AuditLine]


@router.get("/audit", response_model=AuditAnswer, response_model_exclude_none=True)
async def audit(
    _: Operator,
    running: Running,
    offset: Annotated[int, Query(ge=0, le=2 * AUDIT_MAX)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> AuditAnswer:
    """What operators did: create, import, rollback, reset, pin, unpin, delete, forget, export, and
    make tokens and keys."""
    page = await running.store.access.audit(offset=offset, limit=limit)
    lines = [
        AuditLine(
            id=entry.id,
            at=entry.at,
            who=entry.who,
            action=entry.action,
            outcome=entry.outcome,
            tenant=entry.tenant,
            session_id=entry.session_id,
            fields=dict(entry.fields),
        )
        for entry in page.entries
    ]
    return AuditAnswer(total=page.total, offset=offset, entries=lines)


@asynccontextmanager
async def audited(
    running: Runtime, who: Caller, action: str, session_id: str | None = None, **fields: str | int
) -> AsyncIterator[None]:
    """Write down what an operator is about to do, and after that whether it failed.

    What clients do in their own sessions is in those sessions' logs only.

    Raises:
        StoreUnavailable: it could not be written down; what is inside did not begin.
    """
    if not who.operator:
        yield
        return
    record, texts = running.store.access.record, {k: str(v) for k, v in fields.items()}
    await record(who.name, action, "begun", who.tenant, session_id, texts)
    try:
        yield
    except Exception as error:
        reason = error.name if isinstance(error, Problem) else type(error).__name__
        outcome = f"failed: {reason}"
        try:
            await record(who.name, action, outcome, who.tenant, session_id, texts)
        except SessionStoreError:
            logger.warning("the audit log does not know that a %s failed", action)
        raise
