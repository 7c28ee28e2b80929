"""The command `innerloop`: arguments, one-line errors and exit codes.

Other packages add sub-commands through the entry point group `innerloop.commands`: a module with
`DESCRIPTION`, `add_arguments(parser)` and `run(args) -> exit code`. It is loaded only when its
command is called, and so is everything of ours that takes long to import.

Exit codes: 0 done, 1 failed, 2 wrong arguments or settings, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic_core import PydanticUndefined

from server.listener import StartError, listen
from server.settings import Settings, SettingsError, flag, load_settings, model_folder, variable

COMMANDS_GROUP = "innerloop.commands"
ENVIRONMENT_ONLY = frozenset({"api_keys", "operator_keys"})
"""Everybody on a machine can read the arguments of its processes, so keys are no arguments."""

METAVARS: Mapping[str, str] = {
    "model": "PATH",
    "host": "ADDRESS",
    "data_dir": "DIR",
    "redis_url": "URL",
    "device": "DEVICE",
    "log_level": "LEVEL",
}

KNOWN_COMMANDS: Mapping[str, str] = {
    "data": "fetch and convert the public training data",
    "meta-train": "make a model that learns well from feedback",
    "evaluate": "measure how well a model learns from feedback",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    others = {entry.name: entry for entry in entry_points(group=COMMANDS_GROUP)}
    chosen = arguments[0] if arguments else ""
    try:
        args = make_parser(others, chosen).parse_args(arguments)
        code: int = args.run(args)
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if chosen not in others or package in ("", "adapters", "meta_training", "server"):
            raise
        return fail(f"{chosen} needs {package}: pip install 'innerloop[train]'", 1)
    except BrokenPipeError:  # the reader of our output left, as in `innerloop demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def make_parser(others: Mapping[str, EntryPoint], chosen: str) -> argparse.ArgumentParser:
    """All commands; of ``others`` only the ``chosen`` one is loaded."""
    parser = argparse.ArgumentParser(
        prog="innerloop",
        description="A language model server that learns from feedback, per session, "
        "while it keeps generating.",
        epilog="`innerloop COMMAND --help` explains a command.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_demo(commands)
    for name, entry in sorted(others.items()):
        command = commands.add_parser(name, help=KNOWN_COMMANDS.get(name, f"see {entry.value}"))
        if name == chosen:
            module = entry.load()
            command.description = module.DESCRIPTION
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def _add_serve(commands: Any) -> None:
    command = commands.add_parser(
        "serve",
        help="start the server",
        description="Start the server. It prints one line with its address when it is ready; "
        "its log goes to standard error. Ctrl-C finishes the requests under way; a second Ctrl-C "
        "ends them.",
        epilog=_environment_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, field in Settings.model_fields.items():
        if name in ENVIRONMENT_ONLY:
            continue
        command.add_argument(
            flag(name),
            dest=f"setting_{name}",
            metavar=METAVARS.get(name, "N"),
            help=_percent(f"{field.description}{_default(name)} [{variable(name)}]"),
        )
    command.set_defaults(run=_serve)


def _add_demo(commands: Any) -> None:
    command = commands.add_parser(
        "demo",
        help="teach a running server something and watch it change",
        description="Teach a running server something and watch it change: an untaught question, "
        "five examples, the same question in other words, an unrelated one before and after, and "
        "two sessions that learn opposite things at the same time.",
    )
    command.add_argument(
        "--url",
        default=os.environ.get("INNERLOOP_URL") or "http://127.0.0.1:8000",
        help="address of the server (default: %(default)s) [INNERLOOP_URL]",
    )
    command.add_argument(
        "--key",
        default=os.environ.get("INNERLOOP_KEY") or None,
        help="the key to show, where the server asks for one [INNERLOOP_KEY]",
    )
    command.set_defaults(run=_demo)


def _serve(args: argparse.Namespace) -> int:
    flags = {
        name: getattr(args, f"setting_{name}")
        for name in Settings.model_fields
        if getattr(args, f"setting_{name}", None) is not None
    }
    try:
        settings = load_settings(flags)
        model_folder(settings.model)  # tell it before PyTorch is loaded
    except SettingsError as error:
        return fail(str(error), 2)
    try:
        with listen(settings.host, settings.port) as listener:
            from server.serving import serve  # imports PyTorch

            return serve(settings, listener)
    except SettingsError as error:
        return fail(str(error), 2)
    except StartError as error:
        return fail(str(error), 1)


def _demo(args: argparse.Namespace) -> int:
    from server.demo import DemoError, demo

    try:
        demo(args.url, args.key)
    except DemoError as error:
        return fail(str(error), 1)
    return 0


def fail(message: str, code: int) -> int:
    """Tell what is wrong in one line and return ``code``."""
    print(f"innerloop: {' '.join(message.split())}", file=sys.stderr)
    return code


def _default(name: str) -> str:
    field = Settings.model_fields[name]
    if field.default is PydanticUndefined:
        return " (default: $XDG_DATA_HOME/innerloop, or ~/.local/share/innerloop)"
    return "" if field.default is None else f" (default: {field.default})"


def _environment_help() -> str:
    lines = ["Every setting is also the environment variable in brackets. Only there:"]
    for name in sorted(ENVIRONMENT_ONLY):
        lines.append(f"  {variable(name)}  {Settings.model_fields[name].description}")
    return "\n".join(lines)


def _percent(text: str) -> str:
    return text.replace("%", "%%")


if __name__ == "__main__":
    sys.exit(main())
