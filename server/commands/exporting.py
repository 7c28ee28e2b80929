"""`innerloop export`: a session's adapter into a file."""

import argparse
import io
import json
import os
import re
import sys
import tempfile
import zipfile
from pathlib import Path

from server.commands import CommandError, add_connection, add_json, add_tenant, whole_number
from server.commands.connection import connected
from server.commands.output import emit

DESCRIPTION = (
    "Save a session's adapter as a zip that `PeftModel.from_pretrained` loads once it is unpacked, "
    "and that `innerloop import` makes a session of again. For operators."
)
EXAMPLES = """\
  innerloop export shop-1
  innerloop export shop-1 --adapter-version 3 -o shop.zip --force
  innerloop export shop-1 -o - | ssh other innerloop import - --session shop-1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to save, and where."""
    parser.add_argument("session", help="id of the session")
    parser.add_argument("--adapter-version", type=whole_number(1), metavar="N", help="a kept one")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="default: SESSION-VERSION.zip here; - is standard output",
    )
    parser.add_argument("-f", "--force", action="store_true", help="replace a file that is there")
    add_tenant(parser)
    add_json(parser)
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    """Fetch the zip, and write it whole or not at all."""
    if args.output not in (None, "-"):
        _check(Path(args.output), args.force)
    with connected(args) as client:
        content = client.export(args.session, version=args.adapter_version, tenant=args.tenant)
    if args.output == "-":
        if args.json:
            raise CommandError("-o - prints the zip: leave --json out", 2)
        sys.stdout.buffer.write(content)
        return 0
    version = _version(content)
    default = f"{re.sub(r'[^A-Za-z0-9._-]', '_', args.session)}-{version}.zip"
    path = Path(args.output or default)
    _write(path, content, args.force)
    told = {
        "session_id": args.session,
        "adapter_version": version,
        "file": str(path),
        "bytes": len(content),
    }
    if args.json:
        emit(told)
    else:
        print(f"{path}: version {version} of {args.session}, {len(content)} bytes")
    return 0


def _version(content: bytes) -> int:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return int(json.loads(archive.read("innerloop.json"))["adapter_version"])


def _check(path: Path, force: bool) -> None:
    if path.is_dir():
        raise CommandError(f"{path} is a folder: give a file's name", 2)
    if path.exists() and not force:
        raise _there(path)


def _write(path: Path, content: bytes, force: bool) -> None:
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            if force:
                os.replace(name, path)
            else:
                os.link(name, path)  # never replaces what came meanwhile
        finally:
            Path(name).unlink(missing_ok=True)
    except FileExistsError as error:
        raise _there(path) from error
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}", 1) from error


def _there(path: Path) -> CommandError:
    return CommandError(f"{path} is there already: choose another with -o, or say --force", 1)
