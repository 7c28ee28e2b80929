"""Which replica gets a request: its session's own, unless that one has more to do than the others.

Consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2018, arXiv 1608.01350)
on top of Serve's ring. Departures from the paper: a replica with few requests is never too full,
and where all are, the order of the ring holds. Loads are what this router knows of: its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import PendingRequest, RunningReplica

Name = TypeVar("Name")

LOAD_FACTOR: Final = 1.25
"""How far above the mean a replica's load may be: 1 + ε of the paper."""


def spilled(ring: Sequence[Name], loads: Mapping[Name, int], factor: float, few: int) -> list[Name]:
    """``ring`` with those that may take one more request first.

    That is whoever has fewer than ``few`` requests, or fewer than ``factor`` times the mean with
    the new one counted.
    """
    most = max(few, factor * (sum(loads.values()) + 1) / max(1, len(loads)))
    return sorted(ring, key=lambda name: loads.get(name, 0) >= most)


class BoundedRouter(ConsistentHashRouter):  # type: ignore[misc]  # Ray's base has no types
    """Serve's consistent hashing, with a bound on a replica's load."""

    def initialize_state(
        self, few: int = 1, load_factor: float = LOAD_FACTOR, **others: Any
    ) -> None:
        """Take the kwargs of the deployment: the first two are those of `spilled`."""
        super().initialize_state(**others)
        self._few = few
        self._load_factor = load_factor

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The session's replicas in the order in which they are to be tried."""
        ranked = await super().choose_replicas(candidate_replicas, pending_request)
        loads = {
            replica.replica_id: self.replica_queue_len_cache.get(replica.replica_id) or 0
            for replica in candidate_replicas
        }
        if any(len(rank) != 1 for rank in ranked):  # nobody in particular is meant
            return list(ranked)
        by_id = {rank[0].replica_id: rank for rank in ranked}
        return [by_id[name] for name in spilled(list(by_id), loads, self._load_factor, self._few)]
