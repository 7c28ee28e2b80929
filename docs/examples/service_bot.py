"""A customer-service bot: reads a shop's own answers, teaches them, and answers in other words.

    python docs/examples/service_bot.py answers.jsonl "can I send this back?"

A line of the file is ``{"text": "How do I return something?", "answer": "Keep it sixty days."}``;
some wordings of each question are enough. A server has to run: ``innerloop serve``. Files that
``innerloop data`` prepared are read too, those of intents with answers of your own:

    service_bot.py data/faq-dstc9.jsonl.gz --where "entity=A AND B GUEST HOUSE" "Are pets allowed?"
    service_bot.py data/style-chitchat-en.jsonl.gz --style witty --where group=0 "Are you tall?"
    service_bot.py data/bitext-support.jsonl --replies replies.json --wordings 5 "where is my order"

with ``{"track_order": "It is on its way.", "cancel_order": "Call us."}`` in replies.json.
"""

import argparse
import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from innerloop import Client, InnerloopError, Session

AT_ONCE = 16
MOST = 256  # pairs that a session learns from: those it was taught last


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a file, packed or not, with their numbers."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}:{number}: this line is no JSON: {error}") from None
                yield number, row


def read_answers(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Questions with their answers, as many wordings of each answer as are wanted."""
    path, wanted = arguments.answers, [pair.partition("=")[::2] for pair in arguments.where]
    replies = arguments.replies and json.loads(arguments.replies.read_text("utf-8"))
    taken: Counter[str] = Counter()
    pairs = []
    for number, row in read_rows(path):
        if any(str(row.get(name)) != value for name, value in wanted):
            continue
        try:
            question = next(row[name] for name in ("text", "question", "query") if name in row)
            answer = _answer(row, arguments.style, replies)
        except (StopIteration, KeyError) as error:
            hint = "without a question" if isinstance(error, StopIteration) else f"without {error}"
            raise ValueError(f"{path}:{number}: a line {hint}; see --style and --replies") from None
        if answer and (not arguments.wordings or taken[answer] < arguments.wordings):
            taken[answer] += 1
            pairs.append((question, answer))
    if not 0 < len(pairs) <= MOST:
        raise ValueError(f"{path}: {len(pairs)} pairs, and 1 to {MOST} can be taught; see --where")
    return pairs


def _answer(row: Mapping[str, Any], style: str | None, replies: Mapping[str, str] | None) -> str:
    """The line's own answer, in a style, or the shop's to its intent; "": it has none to it."""
    if replies:
        return replies.get(row["intent"], "")
    return row["responses"][style] if style else row["answer"]


def teach(shop: Session, answers: list[tuple[str, str]]) -> None:
    """Teach all of them, some at a time; tells what was refused."""
    for start in range(0, len(answers), AT_ONCE):
        learned = shop.adapt(answers[start : start + AT_ONCE])
        if not learned.accepted:
            print(f"not learned: {learned.reason}", file=sys.stderr)


def main() -> int:
    """Teach a session of its own and answer one question; returns the exit status."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("answers", type=Path)
    parser.add_argument("question")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key", help="API key, where the server asks for one")
    parser.add_argument("--session", help="a session that was taught before (default: a new one)")
    parser.add_argument("--where", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--wordings", type=int, help="teach so many of each answer (default: all)")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--style", help="where `responses` are given in several")
    given.add_argument("--replies", type=Path, help="JSON file of intents with their answers")
    arguments = parser.parse_args()
    try:
        with Client(arguments.url, api_key=arguments.key) as client:
            if arguments.session is None:
                answers = read_answers(arguments)
                shop = client.new_session()
                teach(shop, answers)
            else:
                shop = client.session(arguments.session)
            answer = shop.generate(arguments.question)
            print(answer.text)
            print(f"(session {shop.id}, version {answer.adapter_version})", file=sys.stderr)
    except (InnerloopError, OSError, ValueError) as error:
        print(f"service_bot: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
