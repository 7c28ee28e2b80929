"""Replicas, Redis and cost for so many sessions and arrivals a second, from measured constants.

The constants are those of one CPU thread with innerloop-tiny. For another machine, a GPU above
all, measure them there (`python -m benchmarks.fleet measure`) and give them here.
"""

import argparse
import json
from dataclasses import asdict, fields

from benchmarks.fleet.constants import CONSTANTS
from benchmarks.fleet.model import Constants, Demand, Plan, Prices, plan, work_s

HELP = {
    "rate": "arrivals a second",
    "sessions": "that Redis keeps",
    "adapts": "share of the arrivals that teach",
    "feedback": "share of the arrivals that correct an answer",
    "lessons": "of a session in its life",
    "completion_lifetime_s": "how long an answer may be rated, seconds",
    "utilisation": "most of an engine's time to plan with",
    "spare": "replicas that may be away",
    "ask_s": "engine time of an answer, seconds",
    "lesson_s": "engine time of a lesson and the question after it, seconds",
    "session_bytes": "in Redis, of a session with its first adapter",
    "lesson_bytes": "in Redis, of each further adapter that is kept",
    "completion_bytes": "in Redis, of an answer while it may be rated",
    "redis_ask_s": "Redis' CPU time for an answer, seconds",
    "redis_lesson_s": "Redis' CPU time for a lesson, seconds",
    "adapter_read_bytes": "from Redis, where a replica does not hold a session's adapter",
    "adapter_host_bytes": "of an adapter in a replica's memory",
    "cold_s": "more until the first token where the adapter is read, seconds",
    "replica_per_hour": "price of a replica's machine for an hour",
    "redis_gb_per_month": "price of a GB of Redis for a month",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Demand, constants and prices."""
    for kind, values in ((Demand, None), (Constants, CONSTANTS), (Prices, Prices())):
        group = parser.add_argument_group(kind.__name__.lower())
        for field in fields(kind):
            default = getattr(values, field.name) if values else field.default
            needed = values is None and field.name in ("rate", "sessions")
            group.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=int if field.type in (int, "int") else float,
                required=needed,
                default=None if needed else default,
                metavar="N",
                help=HELP[field.name] + ("" if needed else " (default: %(default)s)"),
            )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print what it takes."""
    demand, constants, prices = (
        kind(**{field.name: getattr(args, field.name) for field in fields(kind)})
        for kind in (Demand, Constants, Prices)
    )
    if not (demand.rate > 0 and demand.sessions >= 0 and 0 < demand.utilisation <= 1):
        raise SystemExit("--rate above 0, --sessions not below, --utilisation from 0 to 1, please")
    found = plan(demand, constants, prices)
    print(json.dumps(asdict(found)) if args.json else told(demand, constants, found))
    return 0


def told(demand: Demand, constants: Constants, found: Plan) -> str:
    """The plan for people."""
    lines = [
        f"an arrival takes {work_s(demand, constants) * 1e3:.1f} ms of an engine",
        f"replicas       {found.replicas} ({demand.spare} to spare), "
        f"{found.utilisation:.0%} busy when all are up",
        f"Redis memory   {found.redis_bytes / 1e9:.2f} GB",
        f"Redis CPU      {found.redis_cpu_share:.0%} of a core, adapters read aside",
        f"host memory    {found.host_bytes / 1e9:.1f} GB of adapters in all replicas together, "
        "so that none is read twice",
    ]
    if found.cost_per_month:
        lines.append(f"cost           {found.cost_per_month:,.0f} a month")
    return "\n".join(lines)
