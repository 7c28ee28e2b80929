"""The OpenAPI document, with an example for every request and answer.

A test walks all operations: one without an example, or with one that does not fit its schema,
fails.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI

from server.api.examples import ANSWERS, JOB, OTHERS, PARAMETERS, REQUESTS

JSON = "application/json"


class DocumentedApp(FastAPI):
    """An application whose OpenAPI document has an example for every operation."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            for name, operation in operations(document):
                _show(name, operation)
        return super().openapi()


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every operation of a document, as in "POST /generate"."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def _show(name: str, operation: dict[str, Any]) -> None:
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path" and parameter["name"] in PARAMETERS:
            parameter["example"] = PARAMETERS[parameter["name"]]
    if name in REQUESTS:
        operation["requestBody"]["content"][JSON]["example"] = REQUESTS[name]
    for status, answer in operation["responses"].items():
        if not status.startswith("2") or "content" not in answer:
            continue
        content = answer["content"]
        if status == "202":
            content[JSON]["example"] = JOB
        elif name in ANSWERS:
            content[JSON]["example"] = ANSWERS[name]
        if name in OTHERS:
            media_type, text = OTHERS[name]
            content.setdefault(media_type, {"schema": {"type": "string"}})["example"] = text
