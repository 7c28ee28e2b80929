"""Many replicas, simulated: queues of answers and lessons, caches of adapters, one Redis.

A replica is one engine: it gives answers and lessons half of its time each while both wait, as the
server does. What a visit costs are the constants that were measured. Sessions are drawn by Zipf's
law and sent by a policy; an adapter is read from Redis where a replica does not hold its newest
version. Knows no HTTP and no model. Waiting for the network is not in it.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy
from uhashring import HashRing

from benchmarks.fleet.model import Constants, Demand
from server.commands.load.plan import zipf_ranks

QUANTUM_S = 0.05
"""What the engine does at once before it looks who waits. Shorter ones change little."""
BOUND = 1.25
"""No replica holds more than this times the mean (Mirrokni, Thorup, Zadimoghaddam 2016)."""
ALLOWED = {"bounded": 0, "bounded, 4 allowed": 4}
"""Visits that a replica may hold in any case, by policy: an engine decodes several together."""
POINTS = 40  # of a replica on the ring

Event = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Fleet:
    """A deployment to simulate."""

    replicas: int
    policy: str  # one of POLICIES
    zipf: float = 1.0
    host_adapters: int = 540  # 1 GiB of 1.9 MB
    redis_bytes_per_s: float = 1.25e9  # 10 Gbit/s
    seconds: float = 60.0
    warmup_s: float = 5.0
    lose_at_s: float | None = None  # one replica, the busiest session's
    seed: int = 0


@dataclass
class Outcome:
    """What came of it: seconds of each visit, counted after the warm-up."""

    answers_s: list[tuple[float, float]] = field(default_factory=list)  # (due, took)
    lessons_s: list[tuple[float, float]] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)  # when an adapter was read
    visits: int = 0
    resent: int = 0  # because their replica was lost
    redis_busy_s: float = 0.0
    engine_busy_s: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class Job:
    """Work for an engine; ``done`` gives False where its replica was lost."""

    done: simpy.Event
    left_s: float


class Replica:
    """One engine with its queues and its adapters."""

    def __init__(self, world: "World", number: int) -> None:
        self.number = number
        self.up = True
        self.inside = 0  # visits, for the bounded policy
        self.adapters: OrderedDict[int, int] = OrderedDict()  # session -> version
        self._world = world
        self._queues: dict[str, deque[Job]] = {"ask": deque(), "lesson": deque()}
        self._wake = world.env.event()
        world.env.process(self._engine())

    def work(self, kind: str, seconds: float) -> simpy.Event:
        """Queue work; the event comes when it is done."""
        job = Job(self._world.env.event(), seconds)
        self._queues[kind].append(job)
        if not self._wake.triggered:
            self._wake.succeed()
        return job.done

    def holds(self, session: int, version: int, capacity: int) -> bool:
        """Whether the adapter is here; afterwards it is."""
        found = self.adapters.pop(session, None) == version
        self.adapters[session] = version
        if len(self.adapters) > capacity:
            self.adapters.popitem(last=False)
        return found

    def lose(self) -> None:
        """Go away with everything."""
        self.up = False
        for queue in self._queues.values():
            while queue:
                queue.popleft().done.succeed(False)

    def _engine(self) -> Event:
        env, turn = self._world.env, 0
        while self.up:
            waiting = [queue for queue in self._queues.values() if queue]
            if not waiting:
                self._wake = env.event()
                yield self._wake
                continue
            turn += 1
            queue = waiting[turn % len(waiting)]
            job = queue.popleft()
            step_s = min(job.left_s, QUANTUM_S)
            yield env.timeout(step_s)
            if env.now >= self._world.fleet.warmup_s:
                self._world.outcome.engine_busy_s[self.number] += step_s  # type: ignore[assignment]
            if not self.up:
                job.done.succeed(False)
            elif job.left_s - step_s < 1e-9:
                job.done.succeed(True)
            else:
                queue.appendleft(Job(job.done, job.left_s - step_s))


class World:
    """A fleet, its Redis and its users."""

    def __init__(self, fleet: Fleet, demand: Demand, constants: Constants) -> None:
        self.fleet, self.demand, self.constants = fleet, demand, constants
        self.env = simpy.Environment()
        self.outcome = Outcome()
        self.replicas = [Replica(self, number) for number in range(fleet.replicas)]
        self._redis = simpy.Resource(self.env, 1)
        self._versions: Counter[int] = Counter()
        self._random = np.random.default_rng(fleet.seed)
        names = [str(replica.number) for replica in self.replicas]
        self._ring = HashRing(nodes=names, vnodes=POINTS)
        self._inside = 0

    def run(self) -> Outcome:
        """Simulate all of it."""
        self._fill()
        self.env.process(self._users())
        if self.fleet.lose_at_s is not None:
            self.env.process(self._accident(self.fleet.lose_at_s))
        self.env.run(until=self.fleet.warmup_s + self.fleet.seconds)
        return self.outcome

    def _users(self) -> Event:
        fleet, demand = self.fleet, self.demand
        count = self._random.poisson(demand.rate * (fleet.warmup_s + fleet.seconds))
        gaps_s = self._random.exponential(1 / demand.rate, count)
        sessions = zipf_ranks(self._random, demand.sessions, fleet.zipf, count)
        teaches = self._random.uniform(size=count) < demand.adapts + demand.feedback
        for gap_s, session, teach in zip(gaps_s, sessions, teaches, strict=True):
            yield self.env.timeout(float(gap_s))
            self.env.process(self._visit(int(session), bool(teach)))

    def _visit(self, session: int, teach: bool) -> Event:
        due, counted = self.env.now, self.env.now >= self.fleet.warmup_s
        self.outcome.visits += counted
        # A correction asks first; its answer is among the answers of the same session here.
        kind = "lesson" if teach else "ask"
        while True:
            replica = self.choose(session)
            replica.inside += 1
            self._inside += 1
            yield from self._prepared(replica, session, kind, counted)
            cost_s = self.constants.lesson_s if teach else self.constants.ask_s
            done = yield replica.work(kind, cost_s) if replica.up else self.env.timeout(0, False)
            replica.inside -= 1
            self._inside -= 1
            if done:
                break
            self.outcome.resent += counted
        if teach:
            self._versions[session] += 1
            replica.holds(session, self._versions[session], self.fleet.host_adapters)
        if counted:
            took = self.outcome.lessons_s if teach else self.outcome.answers_s
            took.append((due, self.env.now - due))

    def _prepared(self, replica: Replica, session: int, kind: str, counted: bool) -> Event:
        """Redis' part of a visit: its commands, and the adapter where the replica has it not."""
        constants = self.constants
        held = replica.holds(session, self._versions[session], self.fleet.host_adapters)
        busy_s = constants.redis_lesson_s if kind == "lesson" else constants.redis_ask_s
        if not held:
            busy_s += constants.adapter_read_bytes / self.fleet.redis_bytes_per_s
            if counted:
                self.outcome.reads.append(self.env.now)
        with self._redis.request() as turn:
            yield turn
            yield self.env.timeout(busy_s)
        self.outcome.redis_busy_s += busy_s * (self.env.now >= self.fleet.warmup_s)
        if not held:
            yield self.env.timeout(constants.cold_s)

    def choose(self, session: int) -> Replica:
        """The replica of a visit, by the fleet's policy."""
        return POLICIES[self.fleet.policy](self, session)

    def _accident(self, at_s: float) -> Event:
        yield self.env.timeout(at_s)
        lost = self._owner(0)
        lost.lose()
        self._ring.remove_node(str(lost.number))

    def _owner(self, session: int) -> Replica:
        return self.replicas[int(self._ring.get_node(str(session)))]

    def _anybody(self, _: int) -> Replica:
        up = [replica for replica in self.replicas if replica.up]
        return up[int(self._random.integers(len(up)))]

    def _bounded(self, session: int) -> Replica:
        mean = (self._inside + 1) / sum(replica.up for replica in self.replicas)
        most = max(BOUND * mean, 1.0, ALLOWED[self.fleet.policy])
        for name in self._ring.iterate_nodes(str(session)):
            if self.replicas[int(name)].inside + 1 <= most:
                return self.replicas[int(name)]
        return self._owner(session)

    def _fill(self) -> None:
        """Begin with what replicas hold after a while: those sessions that are visited most."""
        capacity, random = self.fleet.host_adapters, self.fleet.policy == "random"
        places = capacity if random else capacity * len(self.replicas)
        for session in reversed(range(min(places, self.demand.sessions))):
            for replica in self.replicas if random else [self._owner(session)]:
                replica.holds(session, 0, capacity)


POLICIES: dict[str, Callable[[World, int], Replica]] = {
    "random": World._anybody,
    "consistent": World._owner,
    **dict.fromkeys(ALLOWED, World._bounded),
}


def simulate(fleet: Fleet, demand: Demand, constants: Constants) -> dict[str, float]:
    """Run a fleet; latencies in seconds, shares from 0 to 1."""
    outcome = World(fleet, demand, constants).run()
    busy = [outcome.engine_busy_s[n] / fleet.seconds for n in range(fleet.replicas)]
    answers = [took for _, took in outcome.answers_s] or [0.0]
    lessons = [took for _, took in outcome.lessons_s] or [0.0]
    done = len(outcome.answers_s) + len(outcome.lessons_s)
    read_bytes = len(outcome.reads) * constants.adapter_read_bytes
    return {
        "visits_per_s": outcome.visits / fleet.seconds,
        "done_share": done / max(outcome.visits, 1),
        "answer_mean_s": float(np.mean(answers)),
        "answer_p50_s": float(np.percentile(answers, 50)),
        "answer_p99_s": float(np.percentile(answers, 99)),
        "lesson_p50_s": float(np.percentile(lessons, 50)),
        "lesson_p99_s": float(np.percentile(lessons, 99)),
        "engine_mean": float(np.mean(busy)),
        "engine_busiest": float(np.max(busy)),
        "cold_share": len(outcome.reads) / max(outcome.visits, 1),
        "redis_share": outcome.redis_busy_s / fleet.seconds,
        "redis_read_mb_per_s": read_bytes / fleet.seconds / 1e6,
        "resent": outcome.resent,
    }
