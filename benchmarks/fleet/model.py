"""What a number of sessions and a rate take, from constants that were measured.

The model is one of work: a replica has one engine, an engine's second is spent on answers and on
lessons, and what each costs was measured where the engine was full. Waiting is not in it: keep the
utilisation below 1, and see the simulation for what waiting does.
"""

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class Constants:
    """Measured ones. Times are of one engine's thread, seconds; sizes are bytes."""

    ask_s: float  # an answer, its prompt included, in a full batch
    lesson_s: float  # a lesson and the question that follows it
    session_bytes: float = 0.0  # in Redis, with its first adapter
    lesson_bytes: float = 0.0  # in Redis, each further one, as long as its adapter is kept
    completion_bytes: float = 0.0  # in Redis, while it may be rated
    redis_ask_s: float = 0.0  # CPU time of Redis for an answer
    redis_lesson_s: float = 0.0
    adapter_read_bytes: float = 0.0  # from Redis, for a session that a replica does not hold
    adapter_host_bytes: float = 1.9e6  # in a replica's memory
    cold_s: float = 0.0  # more until the first token, where the adapter has to be read


@dataclass(frozen=True)
class Demand:
    """What users do. Shares are of the arrivals, as in `innerloop bench`."""

    rate: float  # arrivals a second
    sessions: int = 0
    adapts: float = 0.1
    feedback: float = 0.05
    lessons: float = 4.0  # of a session in its life, for what Redis keeps
    completion_lifetime_s: float = 86_400.0
    utilisation: float = 0.7  # most of an engine's time that may be planned
    spare: int = 1  # replicas that may be away


@dataclass(frozen=True)
class Prices:
    """Of an hour, in one currency, and of memory for a month. No default means anything."""

    replica_per_hour: float = 0.0
    redis_gb_per_month: float = 0.0


HOURS_A_MONTH = 730.0
SNAPSHOTS = 4
"""INNERLOOP_HISTORY_SNAPSHOTS: adapters of a session that Redis keeps."""


def arrivals_per_cpu_s(demand: Demand, constants: Constants) -> float:
    """Arrivals that a second of an engine's time serves."""
    return 1 / work_s(demand, constants)


def work_s(demand: Demand, constants: Constants) -> float:
    """An engine's time for one arrival, in the mean. A correction asks before, so it is both."""
    asks = 1 - demand.adapts
    lessons = demand.adapts + demand.feedback
    return asks * constants.ask_s + lessons * constants.lesson_s


def redis_work_s(demand: Demand, constants: Constants) -> float:
    """Redis' time for one arrival, in the mean."""
    lessons = demand.adapts + demand.feedback
    return (1 - demand.adapts) * constants.redis_ask_s + lessons * constants.redis_lesson_s


@dataclass(frozen=True)
class Plan:
    """What it takes."""

    replicas: int
    utilisation: float  # of an engine, with all replicas up
    redis_bytes: float
    redis_cpu_share: float  # of one core; commands run one after the other
    host_bytes: float  # of adapters, so that no replica reads one twice; all replicas together
    cost_per_month: float


def plan(demand: Demand, constants: Constants, prices: Prices) -> Plan:
    """Replicas, Redis and cost of a demand."""
    busy = demand.rate * work_s(demand, constants)
    replicas = max(ceil(busy / demand.utilisation), 1) + demand.spare
    kept = min(max(demand.lessons - 1, 0), SNAPSHOTS - 1)
    session = constants.session_bytes + kept * constants.lesson_bytes
    answers = demand.rate * (1 + demand.feedback) * demand.completion_lifetime_s
    redis_bytes = demand.sessions * session + answers * constants.completion_bytes
    money = replicas * prices.replica_per_hour * HOURS_A_MONTH
    return Plan(
        replicas,
        busy / replicas,
        redis_bytes,
        demand.rate * redis_work_s(demand, constants),
        demand.sessions * constants.adapter_host_bytes,
        money + redis_bytes / 1e9 * prices.redis_gb_per_month,
    )
