"""`innerloop keys`: keys that are made and revoked while the server runs. For operators."""

import argparse
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from innerloop import Client, NotFound
from server.commands import CommandError, add_connection, add_json, whole_number
from server.commands.connection import RETRIES, connected, operators_call
from server.commands.output import emit, note, table, when

DESCRIPTION = "Make, list and revoke keys on a running server. For operators."
EXAMPLES = """\
  innerloop keys create --tenant acme --name "the shop's bot" --expires-in 2592000
  innerloop keys
  innerloop keys revoke KEY_ID"""

PATH = "/admin/keys"
PAGE = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The three things that can be done."""
    deeds = parser.add_subparsers(metavar="ACTION", required=True)
    make = deeds.add_parser("create", help="make a key; it is shown once, and never again")
    make.add_argument("--tenant", help="whose sessions it opens; every client's key needs one")
    make.add_argument("--role", choices=("client", "operator"), default="client")
    make.add_argument("--name", help="for people: who has it, and what for")
    make.add_argument(
        "--expires-in", type=whole_number(1), metavar="SECONDS", help="by default it never does"
    )
    # Every attempt that came through would leave a key, though its reply was lost.
    make.set_defaults(deed=_create, retries=0)
    listed = deeds.add_parser(
        "list", help="all keys, without their secrets (without an action, too)"
    )
    listed.set_defaults(deed=_list, retries=RETRIES)
    revoke = deeds.add_parser("revoke", help="make a key open nothing any more")
    revoke.add_argument("id", help="the key's id, from `keys list`")
    revoke.set_defaults(deed=_revoke, retries=RETRIES)
    for one in (make, listed, revoke):
        add_json(one)
        add_connection(one)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    with connected(args, args.retries) as client:
        try:
            args.deed(client, args)
        except NotFound as error:
            if str(error).startswith("there is no route"):
                raise CommandError(
                    "this server keeps no keys of its own, being older than this command: set them "
                    "where it is started, INNERLOOP_API_KEYS and INNERLOOP_OPERATOR_KEYS"
                ) from error
            raise
    return 0


def _create(client: Client, args: argparse.Namespace) -> None:
    body = {
        "tenant": args.tenant,
        "role": args.role,
        "name": args.name,
        "expires_in_s": args.expires_in,
    }
    made = client.call(operators_call("POST", PATH, body))
    if args.json:
        emit(made)
        return
    note(f"key {made['id']} for {made['role']}s of tenant {made['tenant']}, shown this once:")
    print(made["key"])


def _list(client: Client, args: argparse.Namespace) -> None:
    if args.json:
        for key in _keys(client):
            emit(key)
        return
    rows = [
        (
            k["id"],
            k["role"],
            k["tenant"],
            k.get("name") or "-",
            when(k["created_at"]),
            when(k.get("expires_at")),
        )
        for k in _keys(client)
    ]
    table(("id", "role", "tenant", "name", "created", "expires"), rows)


def _revoke(client: Client, args: argparse.Namespace) -> None:
    client.call(operators_call("DELETE", f"{PATH}/{quote(args.id, safe='')}"))
    if args.json:
        emit({"id": args.id, "revoked": True})
    else:
        print(f"key {args.id} opens nothing any more")


def _keys(client: Client) -> Iterator[dict[str, Any]]:
    offset = 0
    while True:
        call = operators_call("GET", PATH, offset=offset, limit=PAGE)
        page = client.call(call)["keys"]
        yield from page
        offset += len(page)
        if len(page) < PAGE:
            return
