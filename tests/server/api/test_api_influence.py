"""How much of a version each item made, against sessions that were never taught it."""

from collections.abc import Callable

import httpx
import pytest
import torch
from api_calls import EXAMPLES, exported, ok, problem, teach
from server_harness import LiveServer


def shares(http: httpx.Client, session: str, version: int) -> dict[int, float | None]:
    found = ok(http.get(f"/admin/sessions/{session}/versions/{version}/influence"))
    assert (found["session_id"], found["adapter_version"]) == (session, version)
    return {one["item"]: one["share"] for one in found["items"]}


def test_influence_is_the_distance_to_a_session_never_taught_it(
    live: LiveServer, http: httpx.Client, session: str
) -> None:
    lessons = [("Do you ship?", "Worldwide."), ("Refunds?", "In a month."), ("Open?", "At nine.")]

    def taught(name: str, some: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
        examples = [{"prompt": prompt, "completion": answer} for prompt, answer in some]
        ok(http.post("/adapt", json={"session_id": name, "examples": examples}))
        return {n: t.double() for n, t in exported(http, name)[0].items()}

    def weights(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        modules = [n.removesuffix(".lora_A.weight") for n in tensors if "lora_A" in n]
        products = [
            tensors[f"{m}.lora_B.weight"] @ tensors[f"{m}.lora_A.weight"] for m in sorted(modules)
        ]
        return torch.cat([product.flatten() for product in products])

    whole = weights(taught(session, lessons))
    start = live.runtime.artifact.session_init
    base = weights({f"base_model.model.{n}.weight": t.double() for n, t in start.items()})
    before = ok(http.get(f"/sessions/{session}"))
    found = shares(http, session, 1)
    assert ok(http.get(f"/sessions/{session}")) == before, "looking changes nothing"
    for number in range(3):
        rest = lessons[:number] + lessons[number + 1 :]
        without = weights(taught(f"{session}-{number}", rest))
        wanted = float((whole - without).norm() / (whole - base).norm())
        assert found[number + 1] == pytest.approx(wanted, rel=2e-2)
    assert min(share for share in found.values() if share is not None) > 0


def test_the_only_item_did_it_all(http: httpx.Client, session: str) -> None:
    ok(http.post("/adapt", json={"session_id": session, "examples": EXAMPLES[:1]}))
    assert shares(http, session, 1) == {1: pytest.approx(1.0)}


def test_versions_that_cannot_be_taken_apart(http: httpx.Client, session: str) -> None:
    teach(http, session)
    path = f"/admin/sessions/{session}/versions/{{}}/influence"
    problem(http.get(path.format(7)), 404)
    many = [{"prompt": f"Question {n}?", "completion": f"Answer {n}."} for n in range(17)]
    for some in (many[:9], many[9:]):
        ok(http.post("/adapt", json={"session_id": session, "examples": some}))
    newest = ok(http.get(f"/sessions/{session}"))["adapter_version"]
    assert "at most 16" in problem(http.get(path.format(newest)), 409)["detail"]
    content = http.get(f"/admin/sessions/{session}/export").content
    imported = f"{session}-copy"
    zipped = {"content-type": "application/zip"}
    ok(
        http.post("/sessions", params={"session_id": imported}, content=content, headers=zipped),
        201,
    )
    told = problem(http.get(f"/admin/sessions/{imported}/versions/1/influence"), 409)
    assert "not derived from items" in told["detail"]


def test_a_look_costs_no_tenant_anything(enter: Callable[..., httpx.Client]) -> None:
    client = enter("acme-key")
    teach(client, "weighed")
    operator = enter("operator-key", **{"X-Tenant": "acme"})
    problem(client.get("/admin/sessions/weighed/versions/1/influence"), 403)
    assert len(ok(operator.get("/admin/sessions/weighed/versions/1/influence"))["items"]) == 2
