"""`innerloop generate`: one answer, as it is written."""

import argparse
import sys
from typing import Any

from innerloop import calls
from innerloop.types import Prompt
from server.commands import WRONG, CommandError, add_connection, add_json, whole_number
from server.commands.connection import connected
from server.commands.output import emit, shown

DESCRIPTION = "Print a session's answer to one prompt, as it is written."
EXAMPLES = """\
  innerloop generate --session shop-1 "can I send this back to you?"
  echo "is it spam? WIN A PRIZE" | innerloop generate -s mail --choice yes --choice no
  innerloop generate -s shop-1 --adapter-version 0 --json "Hello" | jq .text"""

SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "seed")
OPTIONS = (*SAMPLING, "adapter_version", "recall", "in_context")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to ask, and how the answer is sampled."""
    parser.add_argument("prompt", nargs="?", help="the question; from standard input without it")
    parser.add_argument("-s", "--session", required=True, metavar="ID", help="who answers")
    parser.add_argument("--system", metavar="TEXT", help="a system turn before the question")
    parser.add_argument("--max-tokens", type=whole_number(1), metavar="N")
    parser.add_argument("--temperature", type=float, metavar="T", help="0, the default, is greedy")
    parser.add_argument("--top-p", type=float, metavar="P")
    parser.add_argument("--top-k", type=whole_number(0), metavar="K")
    parser.add_argument("--seed", type=whole_number(0), metavar="N")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end before this text")
    parser.add_argument(
        "--choice", action="append", metavar="TEXT", help="answer with one of these; repeat it"
    )
    parser.add_argument(
        "--adapter-version", type=whole_number(0), metavar="N", help="a kept one; 0 is untaught"
    )
    parser.add_argument("--recall", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument(
        "--in-context", type=whole_number(0), metavar="K", help="show it K items of its feedback"
    )
    add_json(parser)
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    """Ask, and print."""
    prompt, options = _prompt(args), _options(args)
    with connected(args) as client:
        if args.json:
            emit(client.call(calls.generate(args.session, prompt, False, options)))
        elif args.choice:
            print(shown(client.session(args.session).generate(prompt, **options).text))
        else:
            for text in client.session(args.session).stream(prompt, **options):
                print(shown(text), end="", flush=True)
            print()
    return 0


def _prompt(args: argparse.Namespace) -> Prompt:
    text: str | None = args.prompt
    if text is None or text == "-":
        if sys.stdin.isatty():
            raise CommandError("there is no prompt: give one, or pipe it in", WRONG)
        text = sys.stdin.read().strip()
    if not text:
        raise CommandError("the prompt is empty", WRONG)
    if args.system is None:
        return text
    return [{"role": "system", "content": args.system}, {"role": "user", "content": text}]


def _options(args: argparse.Namespace) -> dict[str, Any]:
    options = {name: getattr(args, name) for name in OPTIONS}
    options |= {"stop": args.stop, "choices": args.choice}
    return {name: value for name, value in options.items() if value is not None}
