"""The command `innerloop`: arguments, one-line errors and exit codes.

`server.commands` lists those that talk to a running server. Other packages add sub-commands through
the entry point group `innerloop.commands`: a module with `DESCRIPTION`, `add_arguments(parser)` and
`run(args) -> exit code`. Each is loaded only when its command is called, and so is everything of
ours that takes long to import.

Exit codes: 0 done; 1 failed, refused, or a reader of the output that left; 2 wrong arguments,
settings or input; 3 no server answers, or it is too busy (1 from `demo`); 130 interrupted.
"""

import argparse
import importlib
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic_core import PydanticUndefined

from server.commands import COMMANDS, CommandError, add_connection, with_action
from server.listener import StartError, listen
from server.rates import Rate
from server.settings import (
    Settings,
    SettingsError,
    flag,
    load_settings,
    model_folder,
    package_version,
    variable,
)

COMMANDS_GROUP = "innerloop.commands"
ENVIRONMENT_ONLY = frozenset({"api_keys", "operator_keys"})
"""Everybody on a machine can read the arguments of its processes, so keys are no arguments."""

METAVARS: Mapping[str, str] = {
    "model": "PATH",
    "encoder": "NAME",
    "host": "ADDRESS",
    "data_dir": "DIR",
    "redis_url": "URL",
    "device": "DEVICE",
    "cors_origins": "ORIGINS",
}
"""What the settings' types do not say."""

KNOWN_COMMANDS: Mapping[str, str] = {
    "data": "fetch and convert the public training data",
    "meta-train": "make a model that learns well from feedback",
    "evaluate": "measure how well a model learns from feedback",
    "search": "try settings of meta-training and keep the best",
    "select": "compare models by their loss on the same tasks",
    "calibrate": "choose the numbers of a model's gate for a sentence encoder",
}
EXTRAS: Mapping[str, str] = {"search": "search"}
"""Extras that commands of others need; `train` where it is not said."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = with_action(sys.argv[1:] if argv is None else argv)
    others = {entry.name: entry for entry in entry_points(group=COMMANDS_GROUP)}
    chosen = arguments[0] if arguments else ""
    try:
        args = make_parser(others, chosen).parse_args(arguments)
        code: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except CommandError as error:
        return fail(str(error), error.code)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if chosen not in others or package in ("", "adapters", "meta_training", "server"):
            raise
        extra = EXTRAS.get(chosen, "train")
        return fail(f"{chosen} needs {package}: pip install 'innerloop[{extra}]'", 1)
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
    parser.add_argument("--version", action="version", version=f"innerloop {package_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_demo(commands)
    for name, (module_name, told) in COMMANDS.items():
        command = commands.add_parser(name, help=told)
        if name == chosen:
            _fill(command, importlib.import_module(module_name))
    for name, entry in sorted(others.items()):
        command = commands.add_parser(name, help=KNOWN_COMMANDS.get(name, f"see {entry.value}"))
        if name == chosen:
            _fill(command, entry.load())
    return parser


def _fill(command: argparse.ArgumentParser, module: Any) -> None:
    """Give a command what its module says about it."""
    command.description = module.DESCRIPTION
    if examples := getattr(module, "EXAMPLES", ""):
        command.epilog = f"examples:\n{examples}"
        command.formatter_class = _Help
    module.add_arguments(command)
    command.set_defaults(run=module.run)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Examples keep their lines; the description is filled as everywhere."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


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
            metavar=_metavar(name),
            help=_percent(f"{field.description}{_default(name)} [{variable(name)}]"),
        )
    command.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="a Ray Serve configuration file, as docker/serve.yaml: it says everything that the "
        "other arguments would",
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
        "--keep", action="store_true", help="do not delete its sessions at the end"
    )
    add_connection(command)
    command.set_defaults(run=_demo)


def _serve(args: argparse.Namespace) -> int:
    flags = {
        name: getattr(args, f"setting_{name}")
        for name in Settings.model_fields
        if getattr(args, f"setting_{name}", None) is not None
    }
    if args.config is not None:
        return _serve_config(args.config, sorted(flags))
    try:
        settings = load_settings(flags)
        # Told before PyTorch is loaded, and by the name that it was given under.
        model_folder(settings.model, (flag if "model" in flags else variable)("model"))
    except SettingsError as error:
        return fail(str(error), 2)
    try:
        alone = settings.redis_url is None
        with listen(settings.host, settings.port, accept=alone) as listener:
            if settings.replicas is not None:
                return _serve_replicas(settings, listener)
            from server.serving import serve  # imports PyTorch

            return serve(settings, listener)
    except SettingsError as error:
        return fail(str(error), 2)
    except StartError as error:
        return fail(str(error), 1)


def _serve_replicas(settings: Settings, listener: socket.socket) -> int:
    with _needing_ray():
        from server.scale.driver import serve_replicas
    return serve_replicas(settings, listener)


def _serve_config(path: Path, flags: Sequence[str]) -> int:
    """Check a Serve configuration file, and become `serve run` of it."""
    if flags:
        return fail(f"with --config, the file says it, not {flag(flags[0])}", 2)
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(path)]
    try:
        with _needing_ray():
            from server.scale.file import check_file
        check_file(path)
    except SettingsError as error:
        return fail(str(error), 2)
    except StartError as error:
        return fail(str(error), 1)
    else:
        os.execv(sys.executable, command)


@contextmanager
def _needing_ray() -> Iterator[None]:
    """Raises StartError where Ray is not installed."""
    from server.scale.environment import prepare

    prepare()
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        raise StartError("replicas run on Ray: pip install 'innerloop[ray]'") from error


def _demo(args: argparse.Namespace) -> int:
    from server.demo import DemoError, demo

    try:
        demo(args.url, args.key, args.keep)
    except DemoError as error:
        return fail(str(error), 1)
    return 0


def fail(message: str, code: int) -> int:
    """Tell what is wrong in one line and return ``code``."""
    print(f"innerloop: {' '.join(message.split())}", file=sys.stderr)
    return code


def _metavar(name: str) -> str:
    if name in METAVARS:
        return METAVARS[name]
    kind = Settings.model_fields[name].annotation
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if kind is bool:
        return "true|false"
    return "RATE" if Rate in get_args(kind) else "N"


def _default(name: str) -> str:
    field = Settings.model_fields[name]
    if field.default is PydanticUndefined:
        return " (default: $XDG_DATA_HOME/innerloop, or ~/.local/share/innerloop)"
    shown = str(field.default).lower() if isinstance(field.default, bool) else field.default
    return "" if field.default in (None, ()) else f" (default: {shown})"


def _environment_help() -> str:
    lines = ["Every setting is also the environment variable in brackets. Only there:"]
    for name in sorted(ENVIRONMENT_ONLY):
        lines.append(f"  {variable(name)}  {Settings.model_fields[name].description}")
    return "\n".join(lines)


def _percent(text: str) -> str:
    return text.replace("%", "%%")


if __name__ == "__main__":
    sys.exit(main())
