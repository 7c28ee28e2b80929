"""A tenant's house: what all its sessions begin with. For keys, never for session tokens."""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal, Protocol

from innerloop import calls
from innerloop.calls import Call
from innerloop.types import Answer, HouseInfo, Item, Learned, Lesson


class Sending(Protocol):
    """A client."""

    def call(self, call: Call) -> Any:
        """Send a call; gives its JSON."""

    def rows(self, page: Callable[[int], Call], field: str) -> Iterator[dict[str, Any]]:
        """All that a list holds."""


class AsyncSending(Protocol):
    """A client whose calls are awaited."""

    async def call(self, call: Call) -> Any:
        """Send a call; gives its JSON."""

    def rows(self, page: Callable[[int], Call], field: str) -> AsyncIterator[dict[str, Any]]:
        """All that a list holds."""


class House:
    """The house of one tenant. Every method raises InnerloopError."""

    def __init__(self, client: Sending, tenant: str | None) -> None:
        """Nothing is sent yet."""
        self._client = client
        self.tenant = tenant

    def adapt(
        self,
        lessons: Iterable[Lesson],
        *,
        steps: int | None = None,
        dry_run: bool = False,
        idempotency_key: str | None = None,
    ) -> Learned:
        """Learn from examples, preferences or (prompt, answer) pairs; all sessions follow.

        A key is drawn where none is given, so that a retry teaches once.
        """
        call = calls.house_adapt(self.tenant, lessons, steps, dry_run, idempotency_key)
        return Learned.read(self._client.call(call))

    def correct(self, completion: Answer | str, correction: str) -> Learned:
        """Say what an answer of any session should have been, to all of them."""
        call = calls.house_feedback(self.tenant, completion, None, correction)
        return Learned.read(self._client.call(call))

    def rate(self, completion: Answer | str, rating: Literal[1, -1]) -> Learned:
        """Say how good an answer of any session was, to all of them."""
        call = calls.house_feedback(self.tenant, completion, rating, None)
        return Learned.read(self._client.call(call))

    def info(self) -> HouseInfo:
        """Where the house stands. Raises NotFound: there is none."""
        return HouseInfo.read(self._client.call(calls.house("GET", self.tenant)))

    def items(self) -> Iterator[Item]:
        """What it was told, by id."""
        pages = partial(calls.house_items, self.tenant)
        yield from map(Item.read, self._client.rows(pages, "items"))

    def forget(self, item: Item | int) -> None:
        """Forget an item exactly, in the house and in every session."""
        number = item if isinstance(item, int) else item.id
        self._client.call(calls.house("DELETE", self.tenant, "feedback", number))

    def rollback(self, version: int) -> HouseInfo:
        """Make a kept version, or 0, the one in force again."""
        return HouseInfo.read(self._client.call(calls.house_rollback(self.tenant, version)))

    def delete(self) -> None:
        """Delete the house, and whatever sessions have of it."""
        self._client.call(calls.house("DELETE", self.tenant))


class AsyncHouse:
    """The house of one tenant. Every method raises InnerloopError."""

    def __init__(self, client: AsyncSending, tenant: str | None) -> None:
        """Nothing is sent yet."""
        self._client = client
        self.tenant = tenant

    async def adapt(
        self,
        lessons: Iterable[Lesson],
        *,
        steps: int | None = None,
        dry_run: bool = False,
        idempotency_key: str | None = None,
    ) -> Learned:
        """Learn from examples, preferences or (prompt, answer) pairs; all sessions follow.

        A key is drawn where none is given, so that a retry teaches once.
        """
        call = calls.house_adapt(self.tenant, lessons, steps, dry_run, idempotency_key)
        return Learned.read(await self._client.call(call))

    async def correct(self, completion: Answer | str, correction: str) -> Learned:
        """Say what an answer of any session should have been, to all of them."""
        call = calls.house_feedback(self.tenant, completion, None, correction)
        return Learned.read(await self._client.call(call))

    async def rate(self, completion: Answer | str, rating: Literal[1, -1]) -> Learned:
        """Say how good an answer of any session was, to all of them."""
        call = calls.house_feedback(self.tenant, completion, rating, None)
        return Learned.read(await self._client.call(call))

    async def info(self) -> HouseInfo:
        """Where the house stands. Raises NotFound: there is none."""
        return HouseInfo.read(await self._client.call(calls.house("GET", self.tenant)))

    async def items(self) -> AsyncIterator[Item]:
        """What it was told, by id."""
        async for item in self._client.rows(partial(calls.house_items, self.tenant), "items"):
            yield Item.read(item)

    async def forget(self, item: Item | int) -> None:
        """Forget an item exactly, in the house and in every session."""
        number = item if isinstance(item, int) else item.id
        await self._client.call(calls.house("DELETE", self.tenant, "feedback", number))

    async def rollback(self, version: int) -> HouseInfo:
        """Make a kept version, or 0, the one in force again."""
        return HouseInfo.read(await self._client.call(calls.house_rollback(self.tenant, version)))

    async def delete(self) -> None:
        """Delete the house, and whatever sessions have of it."""
        await self._client.call(calls.house("DELETE", self.tenant))
