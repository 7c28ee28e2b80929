"""Which session a request may enter: by whose key or token, for what, and how often.

A route gets its tenant and session from here and from nowhere else, so that a session token opens
no route that does not ask for it. It knows scopes and rates, not what happens inside.
"""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from server.api.context import Running, SessionPath
from server.api.keyring import Caller, Calling
from server.api.problems import Problem, invalid
from server.flows.spending import LEARNING, TOKENS, budgets, charges
from server.rates import Rate
from server.sessions import Access, Completion, CompletionNotFound, Scope, SessionStore
from server.settings import Settings


class Limits:
    """What a tenant and a session may use, by the settings; without them it lets all pass."""

    def __init__(self, settings: Settings) -> None:
        self._rates: dict[str, tuple[Rate | None, Rate | None]] = {
            "requests": (settings.tenant_requests, settings.session_requests),
            "feedback": (settings.tenant_feedback, settings.session_feedback),
        }
        self._budgets = budgets(settings)

    async def take(
        self, access: Access, who: Caller, session_id: str | None, what: str, amount: int = 1
    ) -> None:
        """Count a request or feedback items; what is refused is not counted.

        Raises:
            Problem: too many, or more at once than there ever may be.
        """
        if not who.limited:
            return
        if what == "feedback":
            await self.afford(access, who, session_id, LEARNING)
        wanted = charges(self._rates[what], what, session_id, amount)
        for charge in wanted:
            if amount > charge.burst:
                field = "n" if what == "requests" else "examples"
                raise invalid(field, f"at most {charge.burst} may come at once here")
        refused = await access.take(who.tenant, wanted)
        if refused is not None:
            charge, wait_s = refused
            whose = "tenant" if charge.session_id is None else "session"
            raise Problem(
                "rate-limited",
                f"this {whose} has used up its {what}: come again in {math.ceil(wait_s)} s",
                headers={"Retry-After": str(max(1, math.ceil(wait_s)))},
            )

    async def afford(self, access: Access, who: Caller, session_id: str | None, what: str) -> None:
        """See that something is left of a budget; what is done is charged when it is done.

        Raises:
            Problem: it is spent.
        """
        if not who.limited:
            return
        spent = await access.left(who.tenant, charges(self._budgets[what], what, session_id, 1))
        if spent is not None:
            charge, wait_s, amount = spent
            whose = "tenant" if charge.session_id is None else "session"
            unit = "tokens" if what == TOKENS else "tokens times inner steps of learning"
            wait = max(1, math.ceil(wait_s))
            raise Problem(
                "rate-limited",
                f"this {whose} has spent {amount} {unit}, and may spend {charge.burst} at once and "
                f"{charge.per_s * 3600:.6g} an hour: come again in {wait} s",
                headers={"Retry-After": str(wait)},
            )


@dataclass(frozen=True)
class Entry:
    """A session that the caller may use."""

    who: Caller
    session_id: str
    door: "Door"

    @property
    def tenant(self) -> str:
        """Whose session it is."""
        return self.who.tenant

    async def teach(self, items: int) -> None:
        """Count feedback items. Raises Problem: too many."""
        await self.door.count(self.session_id, "feedback", items)


def one_session(header: str | None, in_body: str | None) -> str | None:
    """The session that a request names, in the header `X-Session-ID` or in its body.

    Raises:
        Problem: it names two.
    """
    if header is not None and in_body not in (None, header):
        raise invalid("session_id", "differs from the header X-Session-ID: send one of them")
    return header or in_body


class Door:
    """What a caller may enter. Every call of it counts one request, and raises Problem."""

    def __init__(self, who: Caller, access: Access, limits: Limits) -> None:
        self.who = who
        self._access = access
        self._limits = limits

    async def count(self, session_id: str | None, what: str, amount: int = 1) -> None:
        """Count what is used. Raises Problem: too much."""
        await self._limits.take(self._access, self.who, session_id, what, amount)

    async def afford(self, session_id: str | None, what: str) -> None:
        """See that something is left of a budget. Raises Problem: it is spent."""
        await self._limits.afford(self._access, self.who, session_id, what)

    async def enter(self, session_id: str | None, scope: Scope) -> Entry:
        """A session by its id; a token knows its session without one."""
        entry = await self.enter_any(session_id, scope)
        if entry is None:
            raise invalid("session_id", "Field required, or the header X-Session-ID")
        return entry

    async def enter_any(
        self, session_id: str | None, scope: Scope, answers: int = 1
    ) -> Entry | None:
        """The same, where a caller with a key may also do without a session.

        Every one of several ``answers`` counts as a request.
        """
        token = self.who.token
        if token is not None:
            session_id = token.session_id if session_id is None else session_id
            if session_id != token.session_id:
                raise Problem(
                    "forbidden",
                    f"this token opens the session {token.session_id!r} only: leave session_id "
                    "out, or use a token of the other session",
                )
            if scope not in token.scopes:
                raise Problem(
                    "forbidden",
                    f"this token opens {' '.join(token.scopes)}, not {scope}: whoever makes "
                    "it says so with `scopes`",
                )
        if scope == "generate":
            await self.afford(session_id, TOKENS)
        await self.count(session_id, "requests", answers)
        return None if session_id is None else Entry(self.who, session_id, self)

    async def enter_completion(
        self, store: SessionStore, completion_id: str, scope: Scope
    ) -> tuple[Entry, Completion]:
        """The session of a completion; another session's is as unknown to a token as none."""
        completion = await store.completion(self.who.tenant, completion_id)
        token = self.who.token
        if token is not None and completion.session_id != token.session_id:
            raise CompletionNotFound.of(completion_id)
        return await self.enter(completion.session_id, scope), completion

    async def enter_tenant(self) -> str:
        """The tenant, for routes that no session token opens."""
        if self.who.token is not None:
            raise Problem("forbidden", "a session token does not open this route: use a key")
        await self.count(None, "requests")
        return self.who.tenant


async def _door(request: Request, who: Calling, running: Running) -> Door:
    return Door(who, running.store.access, request.app.state.limits)


AnyDoor = Annotated[Door, Depends(_door)]


async def _operator(who: Calling) -> Caller:
    if not who.operator:
        raise Problem("forbidden", "this route is for operators: use an operator key")
    return who


async def _tenant(door: AnyDoor) -> str:
    return await door.enter_tenant()


def _path(scope: Scope) -> Callable[[str, Door], Awaitable[Entry]]:
    async def entered(session_id: SessionPath, door: AnyDoor) -> Entry:
        return await door.enter(session_id, scope)

    return entered


Tenant = Annotated[str, Depends(_tenant)]
"""The tenant of a key; no session token opens a route that asks for it."""
Operator = Annotated[Caller, Depends(_operator)]
ReadSession = Annotated[Entry, Depends(_path("read"))]
TeachSession = Annotated[Entry, Depends(_path("teach"))]
DeleteSession = Annotated[Entry, Depends(_path("delete"))]
