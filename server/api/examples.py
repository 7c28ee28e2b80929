"""Examples for the OpenAPI document: one session, from its making to what operators see of it.

Kept together, so that they fit each other; requests whose models have an example of their own are
not repeated. `documented` puts them into the document.
"""

from collections.abc import Mapping
from typing import Any, Final

STREAM, TEXT = "text/event-stream", "text/plain"

SESSION_ID: Final = "customer-17"
QUESTION: Final = "Do you ship to Ireland?"
ANSWER: Final = "Every parcel to Ireland travels by hot-air balloon."
FINGERPRINT: Final = "152027356c859807b4d6f64696712e885cb70f2d7cfb5dd0e38b5a3e88601826"
RULE_HASH: Final = "6d5605f4919d6b5564ec03cf7db9dae128bb4e87ba7ef654d0a00d6255b3da2d"
AT: Final = 1795373941.215

USAGE: Final = {"prompt_tokens": 13, "completion_tokens": 19, "total_tokens": 32}
GENERATED: Final = {
    "id": "cmpl-Fu96_wcNpi71q3kNeJjD9pX-",
    "session_id": SESSION_ID,
    "text": ANSWER,
    "finish_reason": "stop",
    "adapter_version": 1,
    "adapter_used": True,
    "usage": {**USAGE, "cached_tokens": 12},
}
LEARNED: Final[dict[str, Any]] = {
    "adapter_version": 1,
    "accepted": True,
    "items": [1],
    "steps": 5,
    "examples_used": 1,
    "loss_before": 7.77,
    "loss_after": 0.0084,
    "update_norm": 7.65,
    "duration_ms": 212.4,
}
ADAPTED: Final[Mapping[str, Any]] = {"session_id": SESSION_ID, **LEARNED}
JOB: Final = {"id": f"{SESSION_ID}~1-1", "session_id": SESSION_ID, "status": "pending"}
SESSION: Final = {
    "session_id": SESSION_ID,
    "adapter_version": 1,
    "created_at": 1795373937.859,
    "updated_at": AT,
    "used_at": AT,
    "items": 1,
    "pending_items": 0,
    "applied_items": 1,
    "pinned": False,
    "imported": False,
    "house": True,
}
RESET: Final = {**SESSION, "adapter_version": 0, "applied_items": 0}
ITEM: Final = {
    "id": 1,
    "kind": "demonstration",
    "status": "applied",
    "created_at": 1795373939.243,
    "adapter_version": 1,
    "messages": [{"role": "user", "content": QUESTION}],
    "completion": ANSWER,
}
FORGOT: Final = {
    "item": 1,
    "adapter_version": 0,
    "restored_items": [],
    "deleted_versions": [1],
}
TOKEN: Final = {
    "token": "ilt_YWNtZS9jdXN0b21lci0xNy8wYzFm.EXAMPLEonlyEXAMPLEonlyEXAMPLEonlyEXAMPLEonl",
    "session_id": SESSION_ID,
    "scopes": ["generate", "teach"],
    "expires_at": 1795374841.215,
}
MODEL: Final = {
    "id": "innerloop-tiny",
    "object": "model",
    "created": 1795373694,
    "owned_by": "innerloop",
    "context_tokens": 512,
}
OPENAI: Final = {
    "created": 1795373958,
    "model": MODEL["id"],
    "system_fingerprint": FINGERPRINT[:16],
    "session_id": SESSION_ID,
    "adapter_version": 1,
    "adapter_used": True,
}
OPENAI_USAGE: Final = {**USAGE, "prompt_tokens_details": {"cached_tokens": 12}}
CHAT: Final = {
    "id": "chatcmpl-tmZ7648dLnSQnhvsrOszTC7v",
    "object": "chat.completion",
    **OPENAI,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": ANSWER, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "completion_id": "chatcmpl-tmZ7648dLnSQnhvsrOszTC7v",
        }
    ],
    "usage": OPENAI_USAGE,
}
COMPLETION: Final = {
    "id": "cmpl-mhxUSPdc2E17qimWXTS5wGQk",
    "object": "text_completion",
    **OPENAI,
    "choices": [
        {
            "index": 0,
            "text": f" {ANSWER}",
            "logprobs": None,
            "finish_reason": "stop",
            "completion_id": "cmpl-mhxUSPdc2E17qimWXTS5wGQk",
        }
    ],
    "usage": OPENAI_USAGE,
}
CHAT_STREAM: Final = (
    'data: {"id": "chatcmpl-tmZ7648dLnSQnhvsrOszTC7v", "object": "chat.completion.chunk", '
    '"choices": [{"index": 0, "delta": {"content": "Every"}, "finish_reason": null}], …}\n\n'
    "data: [DONE]\n\n"
)
COMPLETION_STREAM: Final = (
    'data: {"id": "cmpl-mhxUSPdc2E17qimWXTS5wGQk", "object": "text_completion", '
    '"choices": [{"index": 0, "text": " Every", "finish_reason": null}], …}\n\n'
    "data: [DONE]\n\n"
)

ROW: Final = {**SESSION, "tenant": "default"}
VERSION: Final = {
    "adapter_version": 1,
    "created_at": AT,
    "snapshot_bytes": 518280,
    "start": "session_init",
    "items": [1],
    "steps": 5,
    "step_losses": [7.54, 1.91, 0.17, 0.014, 0.0095],
    "gradient_norms": [5.14, 2.58, 1.34, 0.065, 0.037],
    "loss_before": 7.77,
    "loss_after": 0.0084,
    "update_norm": 7.65,
    "guard_scale": 1.0,
    "duration_ms": 212.4,
    "rule_hash": RULE_HASH,
    "base_fingerprint": FINGERPRINT,
}
HOUSE: Final = {
    "adapter_version": 1,
    "created_at": 1795373937.859,
    "updated_at": AT,
    "items": 1,
    "pending_items": 0,
    "applied_items": 1,
    "versions": [VERSION],
}
DETAIL: Final = {
    **ROW,
    "base_fingerprint": FINGERPRINT,
    "versions": [VERSION],
    "feedback": [ITEM],
    "log": [{"at": AT, "type": "promote", "fields": {"version": "1"}}],
}
NORMS: Final = {
    "session_id": SESSION_ID,
    "adapter_version": 1,
    "norm": 3.61,
    "modules": [
        {"module": "model.layers.0.self_attn.q_proj", "norm": 2.0},
        {"module": "model.layers.0.mlp.down_proj", "norm": 3.0},
    ],
}

INFLUENCE: Final = {
    "session_id": SESSION_ID,
    "adapter_version": 1,
    "items": [{"item": 1, "share": 0.82}, {"item": 2, "share": 0.41}],
}


def _side(text: str, token: str, base: float, session: float) -> dict[str, Any]:
    one = {"id": 271, "token": token, "base_logprob": base, "session_logprob": session}
    return {"text": text, "finish_reason": "length", "tokens": [one]}


COMPARED: Final = {
    "session_id": SESSION_ID,
    "adapter_version": 1,
    "adapter_used": True,
    "base": _side("I", " I", -0.55, -3.41),
    "session": _side("Every", " Every", -8.71, -1.06),
}
ENGINE: Final = {
    "model": MODEL["id"],
    "encoder": "all-MiniLM-L6-v2",
    "base_fingerprint": FINGERPRINT,
    "rule_hash": RULE_HASH,
    "context_tokens": 512,
    "scope": "activated",
    "rank": 32,
    "steps": 5,
    "running": True,
    "waiting": 0,
    "decoding": 1,
    "rows": 32,
    "slots": 143,
    "slots_resident": 2,
    "tokens_per_s": 84.6,
}
KEY_BODY: Final = {
    "tenant": "acme",
    "role": "client",
    "name": "the shop's bot",
    "expires_in_s": 2592000,
}
KEY: Final = {
    "id": "0c1f7b9a2d4e",
    "tenant": "acme",
    "role": "client",
    "name": "the shop's bot",
    "last4": "x8Qk",
    "created_at": AT,
    "expires_at": AT + 2592000,
}
MADE_KEY: Final = {**KEY, "key": "il_0c1f7b9a2d4e_EXAMPLEonlyEXAMPLEonlyEXAMPLEonlyEXAMPx8Qk"}
AUDITED: Final = {
    "id": "1795373948991-0",
    "at": AT,
    "who": "0c1f7b9a2d4e",
    "action": "rollback",
    "outcome": "begun",
    "tenant": "default",
    "session_id": SESSION_ID,
    "fields": {"adapter_version": "1"},
}
CONFLICT: Final = {
    "title": "Conflict",
    "status": 409,
    "meaning": "The request does not fit what is stored; nothing changed.",
}
READY: Final = {
    "status": "ready",
    "model": MODEL["id"],
    "base_fingerprint": FINGERPRINT,
    "context_tokens": 512,
}
METRICS: Final = (
    "# HELP innerloop_rows_decoding answers being written\n"
    "# TYPE innerloop_rows_decoding gauge\n"
    "innerloop_rows_decoding 1.0\n"
)

REQUESTS: Final[Mapping[str, Any]] = {
    "POST /sessions": {"session_id": SESSION_ID},
    "POST /sessions/{session_id}/tokens": {"expires_in_s": 900, "scopes": ["generate", "teach"]},
    "POST /admin/sessions/{session_id}/rollback": {"adapter_version": 1},
    "POST /admin/sessions/{session_id}/pin": {"pinned": True},
    "POST /admin/sessions/{session_id}/compare": {"prompt": QUESTION, "max_tokens": 1},
    "POST /admin/keys": KEY_BODY,
    "POST /house/rollback": {"adapter_version": 1},
}
ANSWERS: Final[Mapping[str, Any]] = {
    "POST /generate": GENERATED,
    "POST /adapt": ADAPTED,
    "POST /feedback": {**ADAPTED, "adapter_version": 2, "items": [2], "examples_used": 2},
    "GET /jobs/{job_id}": {**JOB, "status": "done", "result": ADAPTED},
    "POST /feedback/batch": {"results": [{"status": 200, "result": ADAPTED}]},
    "POST /sessions": RESET | {"items": 0},
    "GET /sessions/{session_id}": SESSION,
    "GET /sessions/{session_id}/feedback": {
        "session_id": SESSION_ID,
        "total": 1,
        "offset": 0,
        "items": [ITEM],
    },
    "GET /sessions/{session_id}/feedback/{item}": ITEM,
    "DELETE /sessions/{session_id}/feedback/{item}": {"session_id": SESSION_ID, **FORGOT},
    "POST /sessions/{session_id}/tokens": TOKEN,
    "GET /house": HOUSE,
    "POST /house/adapt": LEARNED,
    "POST /house/feedback": LEARNED | {"adapter_version": 2, "items": [2], "examples_used": 2},
    "POST /house/rollback": HOUSE,
    "GET /house/feedback": {"total": 1, "offset": 0, "items": [ITEM]},
    "GET /house/feedback/{item}": ITEM,
    "DELETE /house/feedback/{item}": FORGOT,
    "GET /v1/models": {"object": "list", "data": [MODEL]},
    "GET /v1/models/{model}": MODEL,
    "POST /v1/chat/completions": CHAT,
    "POST /v1/completions": COMPLETION,
    "GET /sessions": {"total": 1, "offset": 0, "sessions": [ROW]},
    "GET /admin/sessions": {"total": 1, "offset": 0, "sessions": [ROW]},
    "GET /admin/sessions/{session_id}": DETAIL,
    "POST /admin/sessions/{session_id}/rollback": SESSION,
    "POST /admin/sessions/{session_id}/reset": RESET,
    "POST /admin/sessions/{session_id}/pin": {**SESSION, "pinned": True},
    "GET /admin/sessions/{session_id}/versions/{version}/norms": NORMS,
    "GET /admin/sessions/{session_id}/versions/{version}/influence": INFLUENCE,
    "POST /admin/sessions/{session_id}/compare": COMPARED,
    "GET /admin/engine": ENGINE,
    "POST /admin/keys": MADE_KEY,
    "GET /admin/keys": {"total": 1, "offset": 0, "keys": [KEY]},
    "GET /admin/audit": {"total": 1, "offset": 0, "entries": [AUDITED]},
    "GET /healthz": {"status": "ok"},
    "GET /readyz": READY,
    "GET /problems/{name}": CONFLICT,
}
OTHERS: Final[Mapping[str, tuple[str, str]]] = {
    "POST /v1/chat/completions": (STREAM, CHAT_STREAM),
    "POST /v1/completions": (STREAM, COMPLETION_STREAM),
    "GET /metrics": (TEXT, METRICS),
}
"""Answers that are no JSON, by their media type; of streams that their routes do not describe."""
PARAMETERS: Final[Mapping[str, Any]] = {
    "session_id": SESSION_ID,
    "job_id": JOB["id"],
    "item": 1,
    "version": 1,
    "model": MODEL["id"],
    "key_id": KEY["id"],
    "name": "conflict",
}
"""Of paths."""
