"""Stored texts to frozen values and back.

It knows the field names that scripts write, and no command of Redis. Whatever does not read as this
room writes it raises StoreCorrupt.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from dataclasses import fields as dataclass_fields
from typing import Any, TypeVar, cast

from server.sessions.errors import NotStorable, StoreCorrupt
from server.sessions.types import Event, Item, Kind, Pointer, Status, Version, VersionRecord

META_FIELDS = (
    "incarnation",
    "active",
    "fingerprint",
    "created_ms",
    "updated_ms",
    "last_item",
    "n:pending",
    "n:applied",
    "unpurged",
    "pinned",
    "used_ms",
    "imported",
    "house",
    "pinned_house",
    "alone",
    "n:forgotten",
)

Value = TypeVar("Value")

_RECORD_FIELDS = {field.name for field in dataclass_fields(VersionRecord)}


def dump(value: Mapping[str, Any]) -> str:
    """Write a JSON object. Raises NotStorable for what JSON cannot hold, NaN included."""
    try:
        return json.dumps(dict(value), allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise NotStorable(f"this cannot be stored as JSON: {error}") from error


def load(text: bytes | str) -> dict[str, Any]:
    """Read a JSON object. Raises StoreCorrupt."""
    return _reading("a JSON object", lambda: dict(json.loads(text)))


def dump_record(record: VersionRecord) -> str:
    """Write a version record. Raises NotStorable."""
    fields = asdict(record)
    if not record.house:  # servers from before there were houses read it too
        del fields["house"], fields["house_items"]
    return dump(fields)


def pointer(tenant: str, session_id: str, fields: Sequence[bytes | None]) -> Pointer:
    """Read the META_FIELDS of a session; without an incarnation there is no session."""
    values = dict(zip(META_FIELDS, fields, strict=True))
    incarnation = values["incarnation"]
    if incarnation is None:
        return Pointer(tenant, session_id)

    def number(name: str) -> int:
        return int(values[name] or 0)

    return _reading(
        f"session {session_id!r}",
        lambda: Pointer(
            tenant,
            session_id,
            exists=True,
            incarnation=incarnation.decode(),
            version=number("active"),
            base_fingerprint=(values["fingerprint"] or b"").decode(),
            created_at=number("created_ms") / 1000,
            updated_at=number("updated_ms") / 1000,
            items=number("last_item"),
            pending=number("n:pending"),
            applied=number("n:applied"),
            unpurged=number("unpurged") == 1,
            pinned=number("pinned") == 1,
            used_at=max(number("used_ms"), number("updated_ms")) / 1000,
            imported=0 < number("imported") == number("active"),
            house=(values["house"] or b"").decode(),
            pinned_house=(values["pinned_house"] or b"").decode(),
            alone=number("alone") == 1,
            forgotten=number("n:forgotten"),
        ),
    )


def item(number: int, state: bytes, payload: bytes | None) -> Item:
    """Read one item; a forgotten one has no payload. Raises StoreCorrupt."""

    def read() -> Item:
        fields = json.loads(state)
        status: Status = fields["status"]
        if payload is None and status != "forgotten":
            raise ValueError("its payload is gone")
        kind: Kind = fields["kind"]
        return Item(
            id=number,
            kind=kind,
            status=status,
            payload={} if payload is None else json.loads(payload),
            prompt_key=fields["prompt"],
            rated=fields.get("rated", ""),
            created_at=fields["at"] / 1000,
            reason=fields.get("reason"),
            version=fields.get("version"),
            superseded_by=fields.get("by"),
            idempotency_key=fields.get("key"),
        )

    return _reading(f"item {number}", read)


def status(number: int, state: bytes) -> Status:
    """Read what became of an item, and not what it says. Raises StoreCorrupt."""
    return _reading(f"item {number}", lambda: cast(Status, json.loads(state)["status"]))


def version(number: int, envelope: bytes) -> Version:
    """Read one version. Raises StoreCorrupt."""

    def read() -> Version:
        fields = json.loads(envelope)
        record = json.loads(fields["record"])
        record["item_ids"] = tuple(record["item_ids"])
        record["house_items"] = tuple(record.get("house_items", ()))
        # A newer server that shares this Redis may write more.
        record = {name: value for name, value in record.items() if name in _RECORD_FIELDS}
        return Version(
            number=number,
            created_at=fields["at"] / 1000,
            snapshot_bytes=fields["bytes"],
            snapshot_id=fields["snapshot"],
            record=VersionRecord(**record),
        )

    return _reading(f"version {number}", read)


def event(event_id: bytes, fields: Mapping[bytes, bytes]) -> Event:
    """Read one line of the log: Redis names it by its time in ms. Raises StoreCorrupt."""

    def read() -> Event:
        texts = {name.decode(): value.decode() for name, value in fields.items()}
        at_ms = int(event_id.split(b"-")[0])
        return Event(event_id.decode(), texts.pop("type"), at_ms / 1000, texts)

    return _reading(f"event {event_id!r}", read)


def answer(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Take the settled answer out of an idempotency record, with its version filled in."""
    text = record.get("answer")
    if text is None:
        return None
    return load(cast(str, text)) | {"adapter_version": record["version"]}


def numbers(text: bytes) -> tuple[int, ...]:
    """Read ids that a script joined with commas."""
    return tuple(int(digits) for digits in text.split(b",") if digits)


def _reading(what: str, read: Callable[[], Value]) -> Value:
    try:
        return read()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise StoreCorrupt(
            f"{what} in Redis is not as this server writes it ({error!r}); "
            "delete the session, or restore Redis from a copy"
        ) from error
