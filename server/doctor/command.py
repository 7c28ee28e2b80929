"""`innerloop doctor`: looks at everything that a server needs, and tells what is wrong."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict

from server.commands import DONE, FAILED, add_connection, add_json
from server.commands.output import emit, note, shown
from server.doctor import Finding, machine, storage
from server.settings import SAFE_KEY_CHARS, Settings, SettingsError, load_settings

DESCRIPTION = (
    "Look at everything that a server needs on this machine, under the settings of the "
    "environment and a running server, and tell what is wrong and how to mend it. It changes "
    "nothing. Exit code 1: there are problems."
)
EXAMPLES = """\
  innerloop doctor
  INNERLOOP_MODEL=./my-model innerloop doctor
  innerloop doctor --json | jq '.findings[] | select(.level != "ok")'"""

MARKS = {"ok": "ok      ", "warning": "warning ", "problem": "PROBLEM "}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How thorough to be, and which server to ask."""
    parser.add_argument("--quick", action="store_true", help="do not load the model")
    add_json(parser)
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    """Look, and print a line for everything looked at."""
    findings = []
    for finding in _findings(args):
        findings.append(finding)
        if not args.json:
            mend = f"\n{'':22}{finding.mend}" if finding.mend else ""
            line = f"{MARKS[finding.level]}{finding.check:<14}{finding.detail}{mend}"
            print(shown(line), flush=True)
    count = {level: sum(f.level == level for f in findings) for level in MARKS}
    if args.json:
        emit({"findings": [asdict(f) for f in findings], **count})
    else:
        note(f"{count['problem']} problems, {count['warning']} warnings")
    return FAILED if count["problem"] else DONE


def _findings(args: argparse.Namespace) -> Iterator[Finding]:
    yield from machine.python()
    yield from _guarded("packages", machine.packages)
    try:
        settings = load_settings()
    except SettingsError as error:
        mend = "`innerloop serve --help` says what each takes; the defaults are looked at below"
        yield Finding("settings", "problem", str(error), mend)
        settings = Settings.model_construct()
    else:
        yield Finding("settings", "ok", f"{len(settings.model_fields_set)} in the environment")
        yield from _keys(settings)
    yield from _guarded("redis", lambda: storage.redis(settings.redis_url))
    yield from _guarded(
        "data folder", lambda: storage.data_folder(settings.data_dir, settings.redis_url)
    )
    yield from _guarded("torch", lambda: machine.pytorch(settings.device))
    if settings.kernels and not settings.device.startswith("cuda"):
        yield from _guarded("kernels", machine.kernels)
    from server.doctor import serving  # imports PyTorch, which may be missing

    yield from _guarded("model", lambda: serving.model(settings, load=not args.quick))
    findings, server = serving.running(args.url, args.key)
    yield from _guarded("port", lambda: serving.port(settings, server))
    yield from findings


def _keys(settings: Settings) -> Iterator[Finding]:
    if settings.guessable_keys:
        told = f"{settings.guessable_keys} have fewer than {SAFE_KEY_CHARS} characters, and other "
        told += f"machines can reach {settings.host}"
        yield Finding("keys", "warning", told, "draw longer ones: openssl rand -hex 32")


def _guarded(check: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """One thing that cannot even be looked at must not hide the others."""
    try:
        yield from look()
    except Exception as error:
        told = f"this could not be looked at: {type(error).__name__}: {error}"
        yield Finding(check, "problem", told, "please report it, with this line")
