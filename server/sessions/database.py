"""Whether a Redis database is ours, and fit to keep sessions."""

import secrets

from server.sessions.connection import Connection
from server.sessions.errors import StoreRefused
from server.sessions.keys import SCHEMA, Keys


async def check_database(connection: Connection, keys: Keys, *, shared: bool) -> str:
    """Mark an empty database as ours, refuse one that is not; return the deployment's name.

    Raises StoreRefused, StoreUnavailable, StoreCorrupt.
    """
    if not shared:
        await _check_foreign(connection, keys)
    await connection.read("SET", keys.schema, SCHEMA, "NX")
    await connection.read("SET", keys.deployment, secrets.token_hex(8), "NX")
    schema: bytes = await connection.read("GET", keys.schema)
    deployment: bytes = await connection.read("GET", keys.deployment)
    if schema != str(SCHEMA).encode():
        raise StoreRefused(
            f"{keys.schema} in Redis is {schema.decode(errors='replace')!r} and this server "
            f"knows schema {SCHEMA} only: run the server version that wrote it, or give this "
            "one another Redis database or data folder"
        )
    await _check_eviction(connection)
    await connection.check_fsync()
    await connection.check_clock(keys)
    return deployment.decode()


async def _check_foreign(connection: Connection, keys: Keys) -> None:
    # In this order: another replica may be marking the empty database now, its schema first.
    count = sum(await connection.asked("DBSIZE") or ())
    if not count or await connection.read("TYPE", keys.schema) != b"none":
        return
    raise StoreRefused(
        f"this Redis database holds {count} keys of another program and none of innerloop: "
        "give it one of its own, as in redis://host:6379/1"
    )


async def _check_eviction(connection: Connection) -> None:
    for memory in await connection.asked("INFO", "memory") or ():
        policy = str(memory.get("maxmemory_policy", "noeviction"))
        if policy.startswith("allkeys"):
            raise StoreRefused(
                f"Redis has maxmemory-policy {policy} and would throw sessions away when it is "
                "full: set it to noeviction (or volatile-ttl)"
            )
