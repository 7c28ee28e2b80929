"""`innerloop adapt`: the examples of a JSON Lines file, taught to a session or to the house."""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from innerloop import Adapted, Client, InnerloopError, Invalid, Learned
from server.commands import (
    DONE,
    FAILED,
    WRONG,
    CommandError,
    add_connection,
    add_json,
    add_tenant,
    whole_number,
)
from server.commands.connection import connected
from server.commands.lessons import Line, read_lines
from server.commands.output import emit, lesson_line, note

DESCRIPTION = (
    "Teach a session, or the house that all sessions begin with, the examples of a JSON Lines "
    "file. Each line is an object with `prompt` (a "
    "text) or `messages` (a chat that ends with a user's turn), and `completion`, or `chosen` and "
    "`rejected`. All lines are checked before anything is sent. Exit code 1: the server's guard "
    "refused some, or the server a line after others were learned. What waits because the "
    "session is pinned is kept, and no failure."
)
EXAMPLES = """\
  innerloop adapt shop.jsonl --session shop-1
  echo '{"prompt": "do you ship?", "completion": "By balloon."}' | innerloop adapt - -s shop-1
  innerloop adapt shop.jsonl -s shop-1 --dry-run --json
  innerloop adapt house-rules.jsonl --house"""

BATCH = 64
"""As many as the server takes in a request; each request derives over all that came before."""
SHOWN_ERRORS = 10
_PLACE = re.compile(r"examples\[(\d+)\]\.?(.*)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to teach, and whom."""
    parser.add_argument("file", help="JSON Lines, UTF-8; - is standard input")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("-s", "--session", metavar="ID", help="who learns")
    who.add_argument(
        "--house", action="store_true", help="the tenant's house learns; its sessions follow"
    )
    add_tenant(parser)
    parser.add_argument("--steps", type=whole_number(1), metavar="N", help="inner steps")
    parser.add_argument(
        "--batch",
        type=whole_number(1),
        default=BATCH,
        metavar="N",
        help="examples learned together (default and most: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="derive and report, keep nothing")
    add_json(parser)
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    """Teach, batch by batch; JSON lines have one outcome for each."""
    if args.tenant and not args.house:
        raise CommandError(
            "--tenant goes with --house: sessions are taught with their own key", WRONG
        )
    lines = _lines(args.file)
    size = min(args.batch, BATCH)
    batches = [lines[start : start + size] for start in range(0, len(lines), size)]
    if args.dry_run and len(batches) > 1:
        raise CommandError(
            f"a dry run takes {size} examples, which are {len(lines)}: try fewer", WRONG
        )
    refused = waiting = 0
    learned: list[str] = []
    with connected(args) as client, tqdm(total=len(lines), unit=" examples", disable=None) as bar:
        for batch in batches:
            try:
                outcome = _teach(client, args, batch)
            except InnerloopError as error:
                if batch is not batches[0]:
                    note(f"innerloop: lines learned before this: {', '.join(learned) or 'none'}")
                if isinstance(error, Invalid):
                    code = WRONG if batch is batches[0] else FAILED
                    raise CommandError(_placed(error, batch), code) from error
                raise
            bar.update(len(batch))
            _tell(args.json, outcome, batch)
            if outcome.accepted:
                learned.append(f"{batch[0].number} to {batch[-1].number}")
            elif isinstance(outcome, Adapted) and outcome.waiting:
                waiting += len(batch)
            else:
                refused += len(batch)
    if waiting:
        note(f"innerloop: {waiting} of {len(lines)} examples wait until the session is unpinned")
    if refused:
        note(f"innerloop: {refused} of {len(lines)} examples were refused and changed nothing")
    return FAILED if refused else DONE


def _lines(name: str) -> list[Line]:
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise CommandError(f"{name} cannot be read: {error.strerror}", WRONG) from error
    lines, errors = read_lines(content)
    source = "standard input" if name == "-" else name
    if errors:
        told = [f"{source}:{number}: {message}" for number, message in errors[:SHOWN_ERRORS]]
        if len(errors) > SHOWN_ERRORS:
            told.append(f"and {len(errors) - SHOWN_ERRORS} more lines")
        for line in told:
            note(line)
        raise CommandError(f"{len(errors)} lines of {source} are wrong; nothing was sent", WRONG)
    if not lines:
        raise CommandError(f"there is no example in {source}", WRONG)
    return lines


def _teach(client: Client, args: argparse.Namespace, batch: Sequence[Line]) -> Adapted | Learned:
    learner = client.house(args.tenant) if args.house else client.session(args.session)
    lessons = [line.lesson for line in batch]
    return learner.adapt(lessons, steps=args.steps, dry_run=args.dry_run)


def _placed(error: Invalid, batch: Sequence[Line]) -> str:
    """The server's refusal, with line numbers for its indices."""
    told = []
    for one in error.errors:
        found = _PLACE.fullmatch(str(one.get("path", "")))
        if found and int(found[1]) < len(batch):
            field = f"{found[2]}: " if found[2] else ""
            told.append(f"line {batch[int(found[1])].number}: {field}{one.get('message')}")
    return "; ".join(told) or str(error)


def _tell(as_json: bool, outcome: Adapted | Learned, batch: Sequence[Line]) -> None:
    lines = {"lines": [batch[0].number, batch[-1].number]}
    if as_json:
        emit(asdict(outcome) | lines)
    else:
        print(lesson_line(asdict(outcome)), flush=True)
