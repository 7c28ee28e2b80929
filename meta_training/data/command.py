"""``innerloop data``: what a person types and what they read back.

Knows arguments, messages and exit codes; the work is in ``fetch.py``.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from pathlib import Path

from meta_training.data.errors import SourceError
from meta_training.data.fetch import GITHUB, fetch
from meta_training.data.manifest import ATTRIBUTION, MANIFEST, Outcome
from meta_training.data.sources import load_sources, select

DESCRIPTION = (
    "Fetch the public training data at pinned commits and convert it to JSON lines. Files that are"
    " there already are kept; an interrupted run goes on where it stopped."
)
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments to ``parser``."""
    parser.add_argument("names", nargs="*", metavar="SOURCE", help="only these (default: all)")
    parser.add_argument(
        "--target", type=Path, default=Path("data"), metavar="DIR", help="put them here (data)"
    )
    parser.add_argument(
        "--from",
        dest="source_dir",
        type=Path,
        metavar="DIR",
        help="take prepared files from here instead of fetching, after checking their sha256",
    )
    parser.add_argument(
        "--mirror", default=GITHUB, metavar="URL", help=f"git server with owner/name ({GITHUB})"
    )
    parser.add_argument("--force", action="store_true", help="also replace files that are there")
    parser.add_argument(
        "--list", action="store_true", help="print sources, licences and attribution, fetch nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Do what ``args`` ask for; return the exit code (0, 1 on failure, 130 when interrupted)."""
    try:
        if args.list:
            _print_sources(args.names)
            return 0
        outcomes = fetch(
            args.target, args.names, args.source_dir, mirror=args.mirror, force=args.force
        )
    except SourceError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(_explain(error, args.target))
    except KeyboardInterrupt:
        print(
            "\nstopped: finished files are kept, the same command goes on from here",
            file=sys.stderr,
        )
        return INTERRUPTED
    _print_summary(outcomes, args.target)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (those of the process where it is None)."""
    parser = argparse.ArgumentParser(prog="innerloop data", description=DESCRIPTION)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def _print_sources(names: Sequence[str]) -> None:
    for source in select(load_sources(), names):
        print(f"{source.name}: {source.about}")
        print(f"  {source.file}, {source.rows:,} rows")
        print(f"  licence: {source.licence}")
        print(f"  attribution: {source.attribution}")
        for pin in source.pins:
            print(f"  from: {pin}")


def _print_summary(outcomes: Sequence[Outcome], target: Path) -> None:
    for outcome in outcomes:
        print(f"{outcome.source.file:40} {outcome.contents.rows:>8,} rows  {outcome.how}")
        if outcome.warning:
            print(f"  WARNING: {outcome.warning}")
    size_mb = sum((target / outcome.source.file).stat().st_size for outcome in outcomes) / 1e6
    differing = sum(outcome.warning is not None for outcome in outcomes)
    print(f"{len(outcomes)} files in {target}, {size_mb:.1f} MB; see {MANIFEST} and {ATTRIBUTION}")
    if differing:
        print(f"WARNING: {differing} of them are not the files the published model was trained on")


def _explain(error: OSError, target: Path) -> str:
    place = error.filename or target
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"no room for {place} ({error.strerror}): free some space and run again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{place} cannot be written ({error.strerror}): choose another --target"
    return f"{place}: {error.strerror or error}"


def _fail(message: str) -> int:
    print(f"innerloop data: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
