"""What can go wrong in the engine.

    EngineError
    ├── InvalidRequest (ValueError)        the request cannot be done as it is; nothing was queued
    │   ├── RequestTooLong                 more tokens than the model's context or the KV budget
    │   ├── GrammarRefused                 a JSON schema that cannot be enforced
    │   └── AdapterMismatch                the loaded adapter has another form or another base
    ├── EngineBusy (RuntimeError)          the queue is full, or no place came free: come back later
    ├── EngineStopped (RuntimeError)       not started yet, stopping, stopped, or interrupted
    └── EngineFailed (RuntimeError)        this request or job failed; the engine goes on

The room knows no HTTP status; the api room maps these classes.
"""


class EngineError(Exception):
    """Root of everything that this room raises."""


class InvalidRequest(EngineError, ValueError):
    """The request cannot be done as it is; the message names the field and what to change."""


class RequestTooLong(InvalidRequest):
    """More tokens than the model's context, or than the KV budget, has room for."""


class GrammarRefused(InvalidRequest):
    """An answer cannot be held to this JSON schema on this model; the message says why."""


class AdapterMismatch(InvalidRequest):
    """The adapter has another form than this engine's slots, or belongs to another base."""


class EngineBusy(EngineError, RuntimeError):
    """The queue is full, or no place came free in time; ``retry_after_s``: when to come back."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        """Say what is full, and when to come back."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineStopped(EngineError, RuntimeError):
    """The engine could not see to this, which is to blame for nothing: it was not started yet, was
    stopping, or failed as a whole."""


class EngineFailed(EngineError, RuntimeError):
    """This request or job failed; its cause is in the log. Others were not touched."""
