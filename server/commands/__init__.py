"""Sub-commands that talk to a running server over HTTP, each in a module of its own.

A module has `DESCRIPTION`, `EXAMPLES`, `add_arguments(parser)` and `run(args) -> exit code`, and is
loaded only when its command is called. They know the Python client and nothing of the server.
"""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence

DONE, FAILED, WRONG, AWAY, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes; `server.cli` says what they mean."""

COMMANDS: Mapping[str, tuple[str, str]] = {
    "chat": ("server.commands.chat", "talk to a session, and teach it while you do"),
    "generate": ("server.commands.generate", "one answer of a session"),
    "adapt": ("server.commands.adapt", "teach a session the examples of a JSON Lines file"),
    "sessions": ("server.commands.sessions", "list, show, roll back, pin and delete sessions"),
    "export": ("server.commands.exporting", "save a session's adapter as a PEFT zip"),
    "import": ("server.commands.importing", "make a session of a PEFT zip"),
    "keys": ("server.commands.keys", "make, list and revoke keys"),
    "bench": ("server.commands.bench", "put a load on a server, and measure its latencies"),
    "doctor": ("server.doctor.command", "say what is wrong on this machine, and how to mend it"),
}
"""Command: its module, and what `innerloop --help` says about it."""

LISTING = frozenset({"keys", "sessions"})
"""Commands that list where no action is named."""


def with_action(arguments: Sequence[str]) -> list[str]:
    """The arguments with the action that a command takes where none is named.

    Put in before they are parsed: flags of the command itself and of its action would be two, and
    argparse lets the action's defaults win.
    """
    command, *rest = arguments or [""]
    bare = not rest or (rest[0].startswith("-") and rest[0] not in ("-h", "--help"))
    return [command, "list", *rest] if command in LISTING and bare else [*arguments]


class CommandError(Exception):
    """A command cannot go on; the message says what to do."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        """``code`` is the exit code."""
        super().__init__(message)
        self.code = code


def add_connection(parser: argparse.ArgumentParser) -> None:
    """How a command reaches a server."""
    parser.add_argument(
        "--url",
        default=os.environ.get("INNERLOOP_URL") or "http://127.0.0.1:8000",
        help="address of the server (default: %(default)s) [INNERLOOP_URL]",
    )
    parser.add_argument(
        "--key",
        default=os.environ.get("INNERLOOP_KEY") or None,
        help="the key to show, where the server asks for one [INNERLOOP_KEY]",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Answers for machines."""
    parser.add_argument(
        "--json", action="store_true", help="print JSON and nothing else on standard output"
    )


def add_tenant(parser: argparse.ArgumentParser) -> None:
    """For whom an operator acts."""
    parser.add_argument(
        "--tenant",
        help="for operators: whose sessions (default: the key's own tenant, which is 'default' "
        "unless the key was made for another; a list has all)",
    )


def whole_number(least: int) -> Callable[[str], int]:
    """A type of arguments: a whole number of at least ``least``."""

    def read(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return number

    read.__name__ = "whole number"
    return read
