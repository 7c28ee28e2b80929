"""`python -m benchmarks.fleet PART`: each part says with --help what it does."""

import argparse
import importlib
import sys
from collections.abc import Sequence

PARTS = {
    "capacity": "replicas, Redis and cost for so many sessions and arrivals",
    "measure": "the constants on this machine, and what they predict against what happens",
    "simulate": "up to a million sessions on hundreds of replicas",
    "soak": "one server under a steady load for long",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a part; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parts = parser.add_subparsers(metavar="PART", required=True)
    for name, told in PARTS.items():
        module = importlib.import_module(f"benchmarks.fleet.{name}")
        part = parts.add_parser(name, help=told, description=module.__doc__)
        module.add_arguments(part)
        part.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    code: int = args.run(args)
    return code


if __name__ == "__main__":
    sys.exit(main())
