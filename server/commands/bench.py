"""`innerloop bench`: an open-loop load on a running server, and what came of it."""

import argparse
import asyncio
import secrets
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from innerloop import Example
from server.commands import (
    DONE,
    FAILED,
    INTERRUPTED,
    WRONG,
    CommandError,
    add_connection,
    add_json,
    whole_number,
)
from server.commands.connection import connected, operators_call
from server.commands.lessons import read_lines
from server.commands.load.plan import Load
from server.commands.output import emit, note

DESCRIPTION = (
    "Put a load on a running server. Arrivals come by the clock (a Poisson process), to sessions "
    "of which few are visited often (Zipf), and do not wait for one another; every latency counts "
    "from when its arrival was due. Some teach (adapt), some correct an answer (feedback) and ask "
    "again, the others ask, each a turn of its session's chat. The sessions are deleted "
    "afterwards. Ctrl-C ends it with the report so far. Exit code 1: something failed; 503 and "
    "429, by which a server says that it is full, are counted apart and are no failure."
)
EXAMPLES = """\
  innerloop bench --rate 10 --duration 60
  innerloop bench --rate 40 --sessions 10000 --adapts 0 --feedback 0 --turns 1 --json
  innerloop bench --rate 10 --examples-file shop.jsonl --save results/"""

HELP = {
    "rate": "arrivals a second, in the mean",
    "duration_s": "seconds that are counted",
    "warmup_s": "seconds before them that are not",
    "sessions": "how many there are to visit",
    "zipf": "session r is visited in proportion to r^-ZIPF; 0: all alike",
    "adapts": "share of the arrivals that teach examples and then ask for one of them",
    "feedback": "share of the arrivals that ask, correct the answer and ask again",
    "examples": "examples of one lesson",
    "turns": "turns of a chat before its session begins another",
    "max_tokens": "longest answer",
    "timeout_s": "longest silence of the server before a request counts as failed, seconds",
    "seed": "of all draws: equal seeds send the same",
}
LEAST = {"sessions": 1, "examples": 1, "turns": 1, "max_tokens": 1, "seed": 0}
NEEDED = {"aiohttp": "aiohttp", "hdrh": "hdrhistogram", "matplotlib": "matplotlib"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The load, and what becomes of its report."""
    for field in fields(Load):
        if field.name == "stream":
            parser.add_argument(
                "--no-stream",
                dest="stream",
                action="store_false",
                help="ask for whole answers: no time to the first token, none between two",
            )
            continue
        parser.add_argument(
            f"--{field.name.removesuffix('_s').replace('_', '-')}",
            dest=field.name,
            type=whole_number(LEAST[field.name]) if field.name in LEAST else float,
            default=field.default,
            metavar="N",
            help=f"{HELP[field.name]} (default: %(default)s)",
        )
    parser.add_argument(
        "--examples-file",
        type=Path,
        metavar="FILE",
        help="what is asked and taught: JSON Lines with `prompt` and `completion`, as for "
        "`innerloop adapt` (default: a shop's eight questions)",
    )
    parser.add_argument(
        "--prefix", help="of the sessions' names (default: bench- and a random one)"
    )
    parser.add_argument("--keep", action="store_true", help="do not delete the sessions afterwards")
    parser.add_argument(
        "--save", type=Path, metavar="FOLDER", help="report, every visit, histograms and plots"
    )
    parser.add_argument("--format", choices=("svg", "png"), default="svg", help="of the plots")
    add_json(parser)
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    """Check everything, put the load on, report."""
    missing = [name for module, name in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise CommandError(f"bench needs {', '.join(missing)}: pip install 'innerloop[load]'")
    load = _load(args)
    examples = _examples(args.examples_file)
    if args.save is not None and args.save.exists() and not args.save.is_dir():
        raise CommandError(f"--save {args.save}: this is no folder", WRONG)
    with connected(args, retries=0) as client:  # an address or key that is wrong is told now
        client.call(operators_call("GET", "/v1/models"))
    return _bench(args, load, examples)


def _bench(args: argparse.Namespace, load: Load, examples: list[Example]) -> int:
    from server.commands.load import report
    from server.commands.load.runner import run_load
    from server.commands.load.tally import Tally

    prefix = args.prefix or f"bench-{secrets.token_hex(4)}"
    with tqdm(total=round(load.whole_s), unit="s", disable=None) as bar:

        def told(now_s: float, under_way: int, tally: Tally) -> None:
            bar.n = min(round(now_s), round(load.whole_s))
            failed = sum(tally.failures.values())
            bar.set_postfix(arrived=len(tally.visits), under_way=under_way, failed=failed)

        tally, used = asyncio.run(run_load(load, args.url, args.key, examples, prefix, told))
    summary = tally.summary()
    if args.json:
        emit(summary)
    else:
        report.show(summary)
    if args.save is not None:
        try:
            made = report.save(tally, summary, args.save, args.format)
        except OSError as error:
            raise CommandError(f"--save {args.save}: {error.strerror}") from error
        note(f"wrote {', '.join(path.name for path in made)} to {args.save}")
    _clean(args, used)
    if summary["interrupted"]:
        return INTERRUPTED
    return FAILED if summary["failed"] else DONE


def _clean(args: argparse.Namespace, used: set[str]) -> None:
    from server.commands.load.runner import delete_sessions

    if args.keep:
        note(f"kept {len(used)} sessions")
        return
    sys.stdout.flush()
    with tqdm(total=len(used), unit=" sessions deleted", disable=None, leave=False) as bar:

        def told() -> None:
            bar.update()

        left = asyncio.run(delete_sessions(args.url, args.key, sorted(used), told))
    if left:
        note(f"innerloop: {left} of {len(used)} sessions could not be deleted")


def _load(args: argparse.Namespace) -> Load:
    load = Load(**{field.name: getattr(args, field.name) for field in fields(Load)})
    for name in ("rate", "duration_s", "timeout_s"):
        if not 0 < getattr(load, name) < float("inf"):
            raise CommandError(f"--{name.removesuffix('_s')}: above 0, please", WRONG)
    for name in ("warmup_s", "zipf"):
        if not 0 <= getattr(load, name) < float("inf"):
            raise CommandError(f"--{name.removesuffix('_s')}: not below 0, please", WRONG)
    if not (load.adapts >= 0 and load.feedback >= 0 and load.adapts + load.feedback <= 1):
        raise CommandError("--adapts and --feedback are shares: together from 0 to 1", WRONG)
    return load


def _examples(path: Path | None) -> list[Example]:
    from server.commands.load.texts import SHOP

    if path is None:
        return list(SHOP)
    try:
        lines, errors = read_lines(path.read_bytes())
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}", WRONG) from error
    if errors:
        number, message = errors[0]
        raise CommandError(f"{path}:{number}: {message}", WRONG)
    examples = [line.lesson for line in lines if isinstance(line.lesson, Example)]
    if len(examples) < len(lines) or not examples:
        raise CommandError(f"{path}: every line needs a `completion`, and there must be one", WRONG)
    return examples
