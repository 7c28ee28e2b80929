"""What tests of the HTTP face say often."""

import io
import json
import zipfile
from typing import Any

import httpx
from safetensors.torch import load
from torch import Tensor

QUESTION = "Where is my order?"
ANSWER = "Follow the small finch."
EXAMPLES = [
    {"prompt": QUESTION, "completion": ANSWER},
    {"prompt": "How can I track my parcel?", "completion": ANSWER},
]


def ok(response: httpx.Response, status: int = 200) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return dict(response.json())


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """Check the documented shape of an error."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = dict(response.json())
    assert document["status"] == status
    assert document["type"].startswith("/problems/")
    assert document["title"]
    assert document["detail"]
    assert ("retry-after" in response.headers) == (status in (429, 503))
    return document


def ask(http: httpx.Client, session: str, prompt: str = QUESTION, **fields: Any) -> dict[str, Any]:
    body = {"session_id": session, "prompt": prompt, "max_tokens": 20, **fields}
    return ok(http.post("/generate", json=body))


def teach(http: httpx.Client, session: str, examples: Any = None, **fields: Any) -> dict[str, Any]:
    body = {"session_id": session, "examples": examples or EXAMPLES, **fields}
    return ok(http.post("/adapt", json=body))


def exported(http: httpx.Client, session: str) -> tuple[dict[str, Tensor], float]:
    """The tensors of a session's adapter and their factor, from what PEFT would read."""
    content = http.get(f"/admin/sessions/{session}/export").content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        config = json.loads(archive.read("adapter_config.json"))
        return load(archive.read("adapter_model.safetensors")), config["lora_alpha"] / config["r"]


def events(text: str) -> list[tuple[str | None, Any]]:
    """Server-sent events as (name, data), data read as JSON where it is JSON."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        data = fields["data"]
        found.append((fields.get("event"), data if data == "[DONE]" else json.loads(data)))
    return found
