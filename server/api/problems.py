"""Problem documents (RFC 9457): every error of the server has this one shape.

It knows the documents and their meaning, not the errors of other rooms: `handlers` says which of
those becomes which document. A document's `type` is a path of the server itself, where
`GET /problems/{name}` explains it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem: its HTTP status, its title, and what it means."""

    status: int
    title: str
    meaning: str


KINDS: Mapping[str, Kind] = {
    "malformed": Kind(400, "Malformed request", "The body is not JSON, or HTTP was not followed."),
    "unsupported": Kind(400, "Not supported", "`errors` names a field that asks for too much."),
    "unauthorized": Kind(401, "Key required", "Send `Authorization: Bearer KEY` with a valid key."),
    "forbidden": Kind(403, "Not allowed", "The key is valid but does not open this."),
    "not-found": Kind(404, "Not found", "There is no such route, session, item or completion."),
    "method-not-allowed": Kind(405, "Method not allowed", "`Allow` lists what the route takes."),
    "conflict": Kind(409, "Conflict", "The request does not fit what is stored; nothing changed."),
    "too-large": Kind(413, "Body too large", "The request body is longer than the server takes."),
    "media-type": Kind(415, "Wrong kind of body", "`detail` says which `Content-Type` to send."),
    "invalid": Kind(422, "Invalid request", "`errors` names each wrong field and what is wrong."),
    "rate-limited": Kind(429, "Too many requests", "Come again after the seconds of Retry-After."),
    "busy": Kind(503, "Busy", "More requests wait than the server has room for; retry later."),
    "unavailable": Kind(503, "Unavailable", "Redis or the engine is away for a moment; retry."),
    "internal": Kind(500, "Internal error", "The server failed; its log has the cause."),
}


class FieldError(BaseModel):
    """One wrong field: where it is, and what is wrong with it."""

    location: str = Field(serialization_alias="in", description="body, query, path or header")
    path: str = Field(description="the field, as in examples[0].completion")
    message: str


class ProblemDocument(BaseModel):
    """An error as the client sees it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "/problems/invalid",
                "title": "Invalid request",
                "status": 422,
                "detail": "max_tokens: Input should be greater than or equal to 1",
                "errors": [
                    {
                        "in": "body",
                        "path": "max_tokens",
                        "message": "Input should be greater than or equal to 1",
                    }
                ],
            }
        }
    )

    type: str = Field(description="the kind of problem; GET it to read what it means")
    title: str
    status: int
    detail: str = Field(description="what happened and what to do")
    errors: list[FieldError] | None = None


class Problem(Exception):
    """Raised inside the api room to answer with a problem document."""

    def __init__(
        self,
        name: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """``name`` is a key of KINDS; 503 gets a `Retry-After` by itself."""
        super().__init__(detail)
        self.name = name
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        if KINDS[name].status == 503:
            self.headers.setdefault("Retry-After", str(RETRY_AFTER_S))

    @property
    def status(self) -> int:
        """The HTTP status."""
        return KINDS[self.name].status

    def document(self) -> dict[str, Any]:
        """The members of the document."""
        kind = KINDS[self.name]
        return ProblemDocument(
            type=f"/problems/{self.name}",
            title=kind.title,
            status=kind.status,
            detail=self.detail,
            errors=list(self.errors) or None,
        ).model_dump(mode="json", by_alias=True, exclude_none=True)


def invalid(path: str, message: str, location: str = "body") -> Problem:
    """The problem of one wrong field."""
    detail = f"{path}: {message}"
    error = FieldError(location=location, path=path, message=message)
    return Problem("invalid", detail, errors=[error])


def document_for(request: Request, problem: Problem) -> dict[str, Any]:
    """The document of a problem as the route's clients read it.

    The OpenAI routes carry an `error` member as well (extensions are RFC 9457's own idea), because
    OpenAI's clients read their message from it, and take a stream without one for whole.
    """
    document = problem.document()
    if request.url.path.startswith("/v1/"):
        parameter = problem.errors[0].path or None if problem.errors else None
        document["error"] = {
            "message": problem.detail,
            "type": problem.name,
            "param": parameter,
            "code": problem.name,
        }
    return document


def answer(request: Request, problem: Problem) -> JSONResponse:
    """The response of a problem."""
    return JSONResponse(
        document_for(request, problem),
        status_code=problem.status,
        headers=problem.headers,
        media_type=MEDIA_TYPE,
    )


RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "A problem document (RFC 9457)",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
    }
}
"""For the OpenAPI document: whatever is not a success is a problem document."""

router = APIRouter(tags=["health"])


_REGISTERED = {"model": ProblemDocument, **RESPONSES["default"]}  # what RESPONSES refers to


@router.get("/problems/{name}", responses={**RESPONSES, 404: _REGISTERED})
async def explain(name: str) -> dict[str, Any]:
    """Explain a kind of problem: the `type` of every error leads here."""
    kind = KINDS.get(name)
    if kind is None:
        raise Problem("not-found", f"there is no kind of problem {name!r}: {', '.join(KINDS)}")
    return {"title": kind.title, "status": kind.status, "meaning": kind.meaning}
