"""The OpenAPI document: valid, and with an example for every request and answer that fits."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from api_calls import ok
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from server.api.documented import JSON, operations
from server.api.examples import ANSWERS, OTHERS, REQUESTS

NO_EXAMPLE = {"application/zip", "application/problem+json"}  # the latter has one of its own


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    return ok(http.get("/openapi.json"))


def shown(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], Any]]:
    """Every request and good answer: its name, media type, schema, and example."""
    for name, operation in operations(document):
        parts = {"request": operation.get("requestBody", {})}
        parts |= {s: a for s, a in operation["responses"].items() if s.startswith("2")}
        for part, said in parts.items():
            for media_type, content in said.get("content", {}).items():
                if media_type not in NO_EXAMPLE:
                    schema = content.get("schema", {})
                    given = content.get("example") or resolved(document, schema).get("example")
                    yield f"{name}, {part}", media_type, schema, given


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref", "").rpartition("/")[2]
    return document["components"]["schemas"][reference] if reference else schema


def test_it_is_valid(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()


def test_everything_has_an_example_that_fits(document: dict[str, Any]) -> None:
    seen = 0
    for name, media_type, schema, example in shown(document):
        assert example is not None, f"{name} has no example of {media_type}"
        whole = {**schema, "components": document["components"]}
        found = [error.message for error in Draft202012Validator(whole).iter_errors(example)]
        assert not found, f"the example of {name}: {found}"
        seen += 1
    assert seen > 40
    for name, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path":
                kinds = {"example", "examples"} & {*parameter, *parameter["schema"]}
                assert kinds, f"{parameter['name']} of {name}"


def test_no_example_is_of_a_route_that_is_gone(document: dict[str, Any]) -> None:
    assert {*REQUESTS, *ANSWERS, *OTHERS} <= {name for name, _ in operations(document)}


def test_the_examples_are_what_the_server_takes_and_gives(
    http: httpx.Client, document: dict[str, Any]
) -> None:
    """What has every field of the real answer shows readers what they will get."""
    for name, media_type, _, example in shown(document):
        route, part = name.split(", ")
        method, path = route.split(" ")
        if part != "request" or media_type != JSON or path == "/admin/keys":
            continue  # the first key would shut this server
        filled = re.sub(r"\{\w+\}", "shown", path)
        if isinstance(example, dict) and example.get("model"):
            example = {**example, "model": "tiny-test"}
        response = http.request(method, filled, json=example)
        assert response.status_code not in (400, 415, 422, 500), response.text
    http.delete("/house")  # every other test's sessions would begin with it
    for path in ("/admin/engine", "/readyz", "/healthz", "/admin/sessions", "/v1/models"):
        given = ok(http.get(path))
        assert set(ANSWERS[f"GET {path}"]) <= set(given), path
