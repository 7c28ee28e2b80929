"""Reaching replicas through Serve's deployment handle, with its failures in the ingress' words."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Final

from ray.exceptions import RayError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from server.api.carrying import Carried, Messages, Whole, joined
from server.api.ingress import NoReplica, ReplicaLost
from server.scale.replica import RANK_HEADER

logger = logging.getLogger(__name__)

ASK_ALL_S: Final = 5.0
"""How long all replicas together have to say how they are, and then one of them, seconds."""


class ServeReplicas:
    """`server.api.ingress.Replicas` on a handle of the deployment `server.scale.replica`."""

    def __init__(self, handle: DeploymentHandle[Any], wanted: int) -> None:
        self.wanted = wanted
        self._handle = handle
        self._answers = handle.options(method_name="answer", stream=True)

    async def ask(self, request: Carried, session_id: str | None) -> AsyncGenerator[Messages, None]:
        """Have the session's replica answer, or another; see `Replicas.ask`."""
        response: DeploymentResponseGenerator[Any]
        # Serve's router takes a new id for a request without a session: that goes anywhere.
        response = self._answers.options(session_id=session_id or "").remote(request)
        ended = False
        try:
            async for messages in response:
                yield messages
            ended = True
        except BackPressureError as error:
            raise NoReplica("more requests wait than there is room for: retry later") from error
        except DeploymentUnavailableError as error:
            raise NoReplica("no replica could be started: see the server's log") from error
        except (RayError, ReplicaUnavailableError) as error:
            logger.warning("a replica was lost: %s", _first_line(error))
            raise ReplicaLost(_first_line(error)) from error
        finally:
            if not ended:
                response.cancel()

    async def ask_all(self, request: Carried) -> Sequence[tuple[int, Whole]]:
        """Have all answer; where one of them hangs, the answer of one that does not."""
        try:
            response = self._handle.broadcast("answer_whole", request)
            found = await response.results_async(timeout_s=ASK_ALL_S, return_exceptions=True)
        except TimeoutError:
            logger.warning("not every replica says how it is within %g s", ASK_ALL_S)
            return await self._ask_any(request)
        except DeploymentUnavailableError as error:
            logger.warning("no replica answers: %s", error)
            return []
        return sorted((each for each in found if isinstance(each, tuple)), key=lambda one: one[0])

    async def _ask_any(self, request: Carried) -> Sequence[tuple[int, Whole]]:
        """The answer of one, who may be the one that hangs: then there is none."""
        try:
            async with asyncio.timeout(ASK_ALL_S), aclosing(self.ask(request, None)) as parts:
                one = joined([message async for messages in parts for message in messages])
        except (TimeoutError, ReplicaLost, NoReplica) as error:
            logger.warning("nor does one of them: %s", str(error) or f"nothing in {ASK_ALL_S:g} s")
            return []
        rank = dict(one.headers).get(RANK_HEADER, b"0")
        return [(int(rank), one)]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
