"""How far a version moves each module, against the exported adapter."""

from collections.abc import Callable

import httpx
import pytest
import torch
from api_calls import exported, ok, problem, teach
from server_harness import LiveServer


def norms(http: httpx.Client, session: str, version: int) -> dict[str, float]:
    found = ok(http.get(f"/admin/sessions/{session}/versions/{version}/norms"))
    assert (found["session_id"], found["adapter_version"]) == (session, version)
    modules = {row["module"]: row["norm"] for row in found["modules"]}
    assert found["norm"] == pytest.approx(torch.tensor([*modules.values()]).norm().item())
    return modules


def test_norms_are_those_of_the_exported_adapter(
    live: LiveServer, http: httpx.Client, session: str
) -> None:
    teach(http, session)
    found = norms(http, session, 1)
    tensors, scale = exported(http, session)
    start = live.runtime.artifact.session_init
    assert len(found) * 2 == len(start) == len(tensors)
    for module, norm in found.items():
        now = [tensors[f"base_model.model.{module}.lora_{x}.weight"] for x in "BA"]
        then = [start[f"{module}.lora_{x}"] for x in "BA"]
        moved = scale * (now[0] @ now[1] - then[0] @ then[1]).norm().item()
        assert norm == pytest.approx(moved, rel=1e-3, abs=1e-6)
    assert max(found.values()) > 0


def test_versions_that_there_are_not(http: httpx.Client, session: str) -> None:
    teach(http, session)
    base = f"/admin/sessions/{session}/versions"
    assert "version 7" in problem(http.get(f"{base}/7/norms"), 404)["detail"]
    problem(http.get(f"{base}/0/norms"), 422)
    problem(http.get("/admin/sessions/nobody/versions/1/norms"), 404)


def test_only_operators_may_look(enter: Callable[..., httpx.Client]) -> None:
    teach(enter("acme-key"), "norms")
    path = "/admin/sessions/norms/versions/1/norms"
    problem(enter("acme-key").get(path), 403)
    problem(enter("operator-key").get(path), 404)  # of the tenant `default`
    assert ok(enter("operator-key", **{"X-Tenant": "acme"}).get(path))["norm"] > 0
