"""`innerloop import`: a PEFT zip, or the folder that PEFT saved, becomes a session."""

import argparse
import io
import secrets
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

from server.commands import WRONG, CommandError, add_connection, add_json
from server.commands.connection import connected
from server.commands.output import emit

DESCRIPTION = (
    "Make a session that is served with the adapter of a PEFT zip, or of a folder that PEFT saved. "
    "It is served as it is and takes no feedback."
)
EXAMPLES = """\
  innerloop import shop-1-3.zip --session shop-copy
  innerloop import ./my-lora --json"""

FILES = ("adapter_config.json", "adapter_model.safetensors", "innerloop.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to import, and under which id."""
    parser.add_argument("file", help="a zip or a folder; - is a zip on standard input")
    parser.add_argument("-s", "--session", metavar="ID", help="id of the new session, else drawn")
    add_json(parser)
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    """Send it."""
    content = _content(args.file)
    with connected(args) as client:
        made = client.import_session(content, args.session or f"import-{secrets.token_hex(4)}")
        if args.json:
            emit(asdict(made.info()))
        else:
            print(f"session {made.id} answers with the adapter of {args.file}")
    return 0


def _content(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    path = Path(name)
    try:
        if not path.is_dir():
            return path.read_bytes()
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
            for file in FILES:
                if (path / file).is_file():
                    archive.write(path / file, file)
        return content.getvalue()
    except OSError as error:
        raise CommandError(f"{name} cannot be read: {error.strerror}", WRONG) from error
