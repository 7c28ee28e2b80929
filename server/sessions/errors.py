"""What can go wrong in the session store.

    SessionStoreError
    ├── StoreUnavailable (ConnectionError)         Redis is away, full, read-only: try again
    ├── StoreCorrupt (RuntimeError)                a key holds what this room never wrote
    ├── StoreRefused (RuntimeError)                this database must not be used as it is
    ├── IdempotencyConflict (ValueError)           the key came before with another body
    ├── SessionExists (ValueError)                 a new one was asked for
    ├── SessionPinned (RuntimeError)               it stays as it is until it is unpinned
    ├── SessionImported (RuntimeError)             its adapter was imported: it is not taught
    ├── VersionConflict (RuntimeError)             the pointer or the log moved on: derive again
    ├── AccessConflict (RuntimeError)              too many, or nobody could operate any more
    ├── InvalidName (ValueError)                   an empty or unwritable tenant or session name
    ├── NotStorable (ValueError)                   a value that JSON cannot hold
    ├── NotFound (LookupError)
    │   ├── SessionNotFound
    │   ├── ItemNotFound
    │   ├── VersionNotFound
    │   ├── KeyNotFound                            no stored key of that id
    │   ├── SnapshotLost                           recorded, but without its bytes: derive again
    │   └── CompletionNotFound                     unknown, or its lifetime is over
    └── EmbeddedRedisError (RuntimeError)          the child redis-server did not start or stay
        ├── RedisServerMissing (FileNotFoundError)
        ├── RedisServerTooOld                      older than what wrote the folder, or than 6.2
        └── DataFolderLocked (BlockingIOError)     another server owns the data folder

The room knows no HTTP status; the api room maps these classes.
"""


class SessionStoreError(Exception):
    """Root of everything that this room raises."""


class StoreUnavailable(SessionStoreError, ConnectionError):
    """Redis cannot answer now. Whether a write under way was done is unknown: ask with its key.

    Its message is for anybody who asks; which key and which address, only the log says.
    """


class StoreCorrupt(SessionStoreError, RuntimeError):
    """A key of ours holds a type or a text that this room never writes."""


class StoreRefused(SessionStoreError, RuntimeError):
    """The database has another schema, or would throw sessions away."""


class IdempotencyConflict(SessionStoreError, ValueError):
    """An idempotency key was used again for another request body."""


class SessionExists(SessionStoreError, ValueError):
    """A session of that name is there, and only a new one will do."""


class SessionPinned(SessionStoreError, RuntimeError):
    """The session keeps its version until it is unpinned; nothing was written."""


class SessionImported(SessionStoreError, RuntimeError):
    """The version in force is an import, which feedback cannot change; nothing was written."""


class VersionConflict(SessionStoreError, RuntimeError):
    """Between reading and promoting, the pointer or an item changed; nothing was written."""


class AccessConflict(SessionStoreError, RuntimeError):
    """A key or token that must not be made or revoked like this; nothing was written."""


class InvalidName(SessionStoreError, ValueError):
    """A tenant, session or completion name that cannot be part of a key."""


class NotStorable(SessionStoreError, ValueError):
    """A value that JSON cannot hold, such as NaN or an object of a class."""


class NotFound(SessionStoreError, LookupError):
    """What was asked for is not there."""


class SessionNotFound(NotFound):
    """No such session, or it was deleted since it was read."""


class ItemNotFound(NotFound):
    """No feedback item of that number."""


class VersionNotFound(NotFound):
    """No version of that number: never made, trimmed from history, or purged by forgetting."""


class KeyNotFound(NotFound):
    """No stored key of that id: never made, or revoked."""


class SnapshotLost(NotFound):
    """The version's record is there but its bytes are not; deriving again brings them back."""


class CompletionNotFound(NotFound):
    """No completion of that id, or its lifetime is over."""

    @classmethod
    def of(cls, completion_id: str) -> "CompletionNotFound":
        """The error about one completion, in the same words for whatever reason it has."""
        return cls(
            f"completion {completion_id!r} is unknown or too old for feedback; "
            "send the prompt and the completion as a demonstration instead"
        )


class EmbeddedRedisError(SessionStoreError, RuntimeError):
    """The embedded redis-server did not start, or does not stay up."""


class RedisServerMissing(EmbeddedRedisError, FileNotFoundError):
    """There is no redis-server binary to start."""


class RedisServerTooOld(EmbeddedRedisError):
    """The binary is older than 6.2, or than the server that wrote the data folder."""


class DataFolderLocked(EmbeddedRedisError, BlockingIOError):
    """Another process owns the data folder."""
