"""`innerloop sessions`: what there is, one of them in detail, and what operators do to one."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from innerloop import Client, Forbidden
from innerloop.calls import Call
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
from server.commands.connection import connected, operators_call, session_path
from server.commands.output import emit, losses, note, table, when

DESCRIPTION = (
    "List, show, roll back, reset, pin and delete a server's sessions. For operators; a client's "
    "key lists its own tenant's."
)
EXAMPLES = """\
  innerloop sessions
  innerloop sessions list --contains shop --taught --sort items
  innerloop sessions show shop-1 --json | jq '.versions[].loss_after'
  innerloop sessions rollback shop-1 3
  innerloop sessions delete shop-1 --yes"""

PAGE = 500
SORTS = ("updated_at", "created_at", "session_id", "adapter_version", "items")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One action with its own arguments."""
    deeds = parser.add_subparsers(metavar="ACTION", required=True)
    _add_list(
        deeds.add_parser("list", help="sessions by filter and order (without an action, too)")
    )
    for name, deed, told in (
        ("show", _show, "versions, feedback and log of one"),
        ("rollback", _rollback, "make a kept version the one in force again"),
        ("reset", _reset, "make it untaught; kept versions can be gone back to"),
        ("pin", _pin, "keep it at its version; feedback waits"),
        ("unpin", _unpin, "learn what waits, and go on"),
        ("delete", _delete, "delete it with everything it learned"),
    ):
        one = deeds.add_parser(name, help=told)
        one.add_argument("session", help="id of the session")
        if name == "rollback":
            one.add_argument("version", type=whole_number(0), help="a kept one; 0 is untaught")
        if name == "delete":
            one.add_argument("-y", "--yes", action="store_true", help="do not ask")
        _common(one, deed)


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--contains", metavar="TEXT", help="part of the id")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--taught", action="store_true", default=None, help="only taught ones")
    which.add_argument("--untaught", dest="taught", action="store_false", help="only untaught ones")
    parser.add_argument("--sort", choices=SORTS, help="default: updated_at")
    parser.add_argument("--asc", action="store_true", help="least or oldest first")
    parser.add_argument("--limit", type=whole_number(1), metavar="N", help="default: all of them")
    _common(parser, _list)


def _common(parser: argparse.ArgumentParser, deed: Any) -> None:
    add_tenant(parser)
    add_json(parser)
    add_connection(parser)
    parser.set_defaults(deed=deed)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    with connected(args) as client:
        code: int | None = args.deed(client, args)
        return DONE if code is None else code


def _list(client: Client, args: argparse.Namespace) -> None:
    if args.json:
        for row in _rows(client, args):
            emit(row)
        return
    rows = list(_rows(client, args))
    table(
        ("session", "tenant", "version", "items", "waiting", "updated"),
        [
            (
                row["session_id"],
                row["tenant"],
                _version(row),
                row["items"],
                row["pending_items"],
                when(row["updated_at"]),
            )
            for row in rows
        ],
    )
    if not args.tenant and len({row["tenant"] for row in rows}) > 1:
        note("an operator's key acts for one tenant at a time: say which with --tenant")


def _rows(client: Client, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Sessions page by page. One that changes meanwhile may come twice, or not at all."""
    path, left, offset = "/admin/sessions", args.limit, 0
    while left is None or left > 0:
        query = {
            "tenant": args.tenant,  # a filter here, not whom to act for
            "contains": args.contains,
            "taught": args.taught,
            "sort": args.sort,
            "order": "asc" if args.asc else "desc",
            "offset": offset,
            "limit": PAGE if left is None else min(left, PAGE),
        }
        given = {name: value for name, value in query.items() if value is not None}
        try:
            page = client.call(Call("GET", path, query=given))
        except Forbidden:
            if args.tenant or path == "/sessions":
                raise
            path = "/sessions"  # a client's key lists its own tenant's
            continue
        yield from page["sessions"]
        offset += len(page["sessions"])
        left = None if left is None else left - len(page["sessions"])
        if not page["sessions"] or offset >= page["total"]:
            return


def _show(client: Client, args: argparse.Namespace) -> None:
    path = session_path(args.session)
    detail = client.call(operators_call("GET", path, tenant=args.tenant))
    if args.json:
        emit(detail)
        return
    print(f"{detail['session_id']} of tenant {detail['tenant']}: {_standing(detail)}")
    print(
        f"created {when(detail['created_at'])}, used {when(detail['used_at'])}, "
        f"{detail['applied_items']} of {detail['items']} items applied, "
        f"{detail['pending_items']} waiting\n"
    )
    table(
        ("version", "made", "start", "items", "steps", "loss", "bytes"),
        [
            (
                version["adapter_version"],
                when(version["created_at"]),
                version["start"],
                len(version["items"]),
                version["steps"],
                losses(version) or "-",
                version["snapshot_bytes"] or "derived again",
            )
            for version in detail["versions"]
        ],
    )
    print()
    table(
        ("item", "kind", "status", "asked"),
        [
            (item["id"], item["kind"], item["status"], _asked(item)[:60])
            for item in detail["feedback"]
        ],
    )


def _rollback(client: Client, args: argparse.Namespace) -> None:
    _change(client, args, "rollback", {"adapter_version": args.version})


def _reset(client: Client, args: argparse.Namespace) -> None:
    _change(client, args, "reset")


def _pin(client: Client, args: argparse.Namespace) -> None:
    _change(client, args, "pin", {"pinned": True})


def _unpin(client: Client, args: argparse.Namespace) -> None:
    _change(client, args, "pin", {"pinned": False})


def _change(
    client: Client, args: argparse.Namespace, deed: str, body: dict[str, Any] | None = None
) -> None:
    path = session_path(args.session, deed)
    now = client.call(operators_call("POST", path, body, tenant=args.tenant))
    if args.json:
        emit(now)
    else:
        print(
            f"{now['session_id']}: {_standing(now)}, {now['applied_items']} of "
            f"{now['items']} items applied, {now['pending_items']} waiting"
        )


def _delete(client: Client, args: argparse.Namespace) -> int | None:
    path = f"/sessions/{quote(args.session, safe='')}"
    if not args.yes:
        if not sys.stdin.isatty():
            raise CommandError("nobody is there to ask: say --yes to delete", WRONG)
        client.call(operators_call("GET", path, tenant=args.tenant))  # it is there at all
        print(f"Delete {args.session} with everything it learned? [y/N] ", end="", file=sys.stderr)
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            note("nothing was deleted")
            return FAILED
    client.call(operators_call("DELETE", path, tenant=args.tenant))
    if args.json:
        emit({"session_id": args.session, "deleted": True})
    else:
        print(f"{args.session} is deleted")
    return None


def _version(session: dict[str, Any]) -> str:
    marks = [name for name in ("pinned", "imported") if session.get(name)]
    number = session["adapter_version"]
    return " ".join([str(number) if number else "untaught", *marks])


def _standing(session: dict[str, Any]) -> str:
    return f"{'version ' if session['adapter_version'] else ''}{_version(session)}"


def _asked(item: dict[str, Any]) -> str:
    messages = item.get("messages") or [{}]
    return " ".join(str(messages[-1].get("content", "(erased)")).split())
