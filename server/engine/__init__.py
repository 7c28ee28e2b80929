"""The one owner of model and device: decodes, prefills and learns for many sessions at once.

Knows the model and the adapters; knows no HTTP, no Redis and no sessions. Callers use what is named
here; everything else in the room may change.
"""

from server.engine.engine import Engine
from server.engine.errors import (
    AdapterMismatch,
    EngineBusy,
    EngineError,
    EngineFailed,
    EngineStopped,
    GrammarRefused,
    InvalidRequest,
    RequestTooLong,
)
from server.engine.status import EngineStatus
from server.engine.types import (
    AdapterRef,
    AdaptRequest,
    Candidate,
    Delta,
    EngineLimits,
    Finished,
    FinishReason,
    GenerateRequest,
    Sampling,
    TopLogprobs,
)

__all__ = [
    "AdaptRequest",
    "AdapterMismatch",
    "AdapterRef",
    "Candidate",
    "Delta",
    "Engine",
    "EngineBusy",
    "EngineError",
    "EngineFailed",
    "EngineLimits",
    "EngineStatus",
    "EngineStopped",
    "FinishReason",
    "Finished",
    "GenerateRequest",
    "GrammarRefused",
    "InvalidRequest",
    "RequestTooLong",
    "Sampling",
    "TopLogprobs",
]
