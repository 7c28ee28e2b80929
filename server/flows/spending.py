"""What computing costs, and whose it is: tokens answered with, and tokens learned from.

It is charged when it is known, after the work. It knows rates and where they are counted; who is
refused, and for whom, the api room knows.
"""

import asyncio
import logging
from collections.abc import Mapping

from server.engine import AdaptRequest, Finished
from server.rates import Rate
from server.sessions import HOUSE, Access, Charge, SessionStoreError
from server.settings import Settings

logger = logging.getLogger(__name__)

Rates = Mapping[str, tuple[Rate | None, Rate | None]]
TOKENS, LEARNING = "tokens", "learning"


def budgets(settings: Settings) -> Rates:
    """The budgets of a tenant and of a session, by what they are of."""
    return {
        TOKENS: (settings.tenant_tokens, settings.session_tokens),
        LEARNING: (settings.tenant_learning, settings.session_learning),
    }


def charges(
    rates: tuple[Rate | None, Rate | None], what: str, session_id: str | None, amount: int
) -> list[Charge]:
    """The charges on a tenant's bucket and on a session's, as far as there are such rates."""
    of_tenant, of_session = rates
    wanted = [(of_tenant, None)] + ([(of_session, session_id)] if session_id else [])
    return [
        Charge(what, session, rate.per_s, rate.burst, amount)
        for rate, session in wanted
        if rate is not None
    ]


def answered_tokens(finished: Finished, choices_tokens: int) -> int:
    """Tokens that an answer cost: generated, or scored as choices, and computed of its prompt."""
    computed = finished.prompt_tokens - finished.cached_tokens
    return max(computed, 0) + max(finished.completion_tokens, choices_tokens)


def learned_tokens(request: AdaptRequest, steps: int) -> int:
    """Tokens that a derivation cost: of every example with its prompt, in every step."""
    examples = request.examples
    return steps * sum(example.tokens * len(example.rows()) for example in examples)


class Spending:
    """Charges tenants and sessions. Without budgets it does nothing."""

    def __init__(self, access: Access, rates: Rates) -> None:
        self._access = access
        self._rates = rates
        self._left: set[asyncio.Task[None]] = set()

    async def charge(self, tenant: str, session_id: str | None, what: str, amount: int) -> None:
        """Charge what was spent, whatever is left. A house has no budget but its tenant's.

        Raises:
            SessionStoreError: it may be charged, or not.
        """
        own = None if session_id == HOUSE else session_id
        await self._access.spend(tenant, charges(self._rates[what], what, own, amount))

    def charge_left(self, tenant: str, session_id: str | None, what: str, amount: int) -> None:
        """The same for a caller who has left: nobody waits for it, or is told of an error.

        In a task of its own, as whoever is being cancelled cannot wait for anything.
        """
        work = asyncio.create_task(self.charge_if_possible(tenant, session_id, what, amount))
        self._left.add(work)
        work.add_done_callback(self._left.discard)

    async def charge_if_possible(
        self, tenant: str, session_id: str | None, what: str, amount: int
    ) -> None:
        """The same where a failure is told in the log and changes nothing else."""
        try:
            await self.charge(tenant, session_id, what, amount)
        except SessionStoreError as error:
            logger.warning("%d %s were not charged: %s", amount, what, error)
