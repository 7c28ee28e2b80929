"""Keys: whose sessions a caller sees, and what only operators may do."""

from collections.abc import Callable, Iterator

import httpx
import pytest
from api_calls import ANSWER, ask, ok, problem, teach
from server_harness import LiveServer


@pytest.fixture(scope="module")
def as_caller(live: LiveServer) -> Iterator[Callable[..., httpx.Client]]:
    """Clients of the server with keys."""
    made = []

    def client(key: str | None, **headers: str) -> httpx.Client:
        shown = {} if key is None else {"Authorization": f"Bearer {key}"}
        made.append(live.client(1, headers={**shown, **headers}))
        return made[-1]

    yield client
    for one in made:
        one.close()


def test_no_key_and_unknown_keys(as_caller: Callable[..., httpx.Client]) -> None:
    for key in (None, "acme-key2", "acme", "acme:acme-key"):
        http = as_caller(key)
        for method, path in (("GET", "/sessions/a"), ("POST", "/generate"), ("GET", "/v1/models")):
            response = http.request(method, path, json={} if method == "POST" else None)
            assert response.status_code == 401, (key, path)
            problem(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"
        ok(http.get("/healthz"))
        ok(http.get("/readyz"))
    problem(as_caller(None, Authorization="Basic YTpi").get("/sessions/a"), 401)


def test_tenants_do_not_see_each_other(
    as_caller: Callable[..., httpx.Client], session: str
) -> None:
    acme, second, globex = (as_caller(key) for key in ("acme-key", "acme-second", "globex-key"))
    teach(acme, session)
    completion = ask(acme, session)
    assert completion["text"] == ANSWER
    assert ask(second, session)["text"] == ANSWER
    assert "acme" not in problem(globex.get(f"/sessions/{session}"), 404)["detail"]
    problem(globex.delete(f"/sessions/{session}"), 404)
    for client, theirs in ((acme, True), (second, True), (globex, False)):
        rows = ok(client.get("/sessions", params={"contains": session}))["sessions"]
        assert [row["session_id"] for row in rows] == [session] * theirs
    problem(acme.get("/sessions", params={"tenant": "globex"}), 422)
    problem(globex.get(f"/jobs/{session}~1-2"), 404)
    body = {"completion_id": completion["id"], "correction": "Mine now."}
    problem(globex.post("/feedback", json=body), 404)
    assert ask(globex, session)["adapter_version"] == 0
    assert ok(acme.get(f"/sessions/{session}"))["items"] == 2
    problem(as_caller("globex-key", **{"X-Tenant": "acme"}).get(f"/sessions/{session}"), 403)
    ok(as_caller("acme-key", **{"X-Tenant": "acme"}).get(f"/sessions/{session}"))


def test_operators(as_caller: Callable[..., httpx.Client], session: str) -> None:
    teach(as_caller("acme-key"), session)
    operator = as_caller("operator-key")
    for told in (
        problem(operator.get(f"/admin/sessions/{session}"), 404),
        problem(operator.get(f"/sessions/{session}"), 404),
        problem(operator.delete(f"/sessions/{session}"), 404),
    ):
        assert "'acme' has: say for which tenant, with the header X-Tenant" in told["detail"]
    assert "acme" not in problem(operator.get("/sessions/nobodys"), 404)["detail"]
    acting = as_caller("operator-key", **{"X-Tenant": "acme"})
    assert ok(acting.get(f"/admin/sessions/{session}"))["tenant"] == "acme"
    assert ok(acting.get(f"/sessions/{session}"))["adapter_version"] == 1
    rows = ok(operator.get("/admin/sessions", params={"contains": session}))["sessions"]
    assert [row["tenant"] for row in rows] == ["acme"]
    problem(as_caller("operator-key", **{"X-Tenant": "a/b"}).get("/sessions/a"), 422)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/admin/sessions"),
        ("GET", "/admin/sessions/a"),
        ("POST", "/admin/sessions/a/reset"),
        ("GET", "/admin/engine"),
    ],
)
def test_clients_are_no_operators(
    as_caller: Callable[..., httpx.Client], method: str, path: str
) -> None:
    problem(as_caller("acme-key").request(method, path), 403)
    problem(as_caller(None).request(method, path), 401)


def test_without_keys_only_loopback_names_are_answered(http: httpx.Client) -> None:
    """A page whose name was pointed at 127.0.0.1 must not reach the server through a browser."""
    for name in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "192.168.0.7"):
        problem(http.get("/sessions/a", headers={"Host": name}), 403)
    for name in ("localhost", "localhost:8000", "127.0.0.1", "[::1]:8000"):
        problem(http.get("/sessions/a", headers={"Host": name}), 404)
    ok(http.get("/healthz", headers={"Host": "probe.example"}))


def test_a_token_binds_where_no_keys_are_set(live: LiveServer, http: httpx.Client) -> None:
    """So that a page behaves on its author's machine as it will on a server with keys."""
    token = ok(http.post("/sessions/page/tokens"), 201)["token"]
    with live.client(headers={"Authorization": f"Bearer {token}"}) as page:
        assert ok(page.post("/generate", json={"prompt": "a"}))["session_id"] == "page"
        problem(page.get("/sessions/other"), 403)
        problem(page.get("/admin/sessions"), 403)
        problem(page.get("/sessions/page", headers={"Host": "evil.example"}), 403)
    with live.client(headers={"Authorization": f"Bearer {token[:-1]}"}) as page:
        problem(page.get("/sessions/page"), 401)


def test_keys_are_ignored_where_none_are_set(http: httpx.Client, session: str) -> None:
    ok(http.post("/sessions", json={"session_id": session}), 201)
    ok(http.get(f"/sessions/{session}", headers={"Authorization": "Bearer whatever"}))


def test_pages_of_other_hosts_change_nothing_where_there_are_no_keys(
    http: httpx.Client, session: str
) -> None:
    """A browser sends a request without a body for any page, and asks nobody."""
    teach(http, session)
    reset = f"/admin/sessions/{session}/reset"
    for named in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        assert "CORS" in problem(http.post(reset, headers=named), 403)["detail"]
        problem(http.post(f"/sessions/{session}/tokens", headers=named), 403)
        problem(http.delete(f"/sessions/{session}", headers=named), 403)
        assert ok(http.get(f"/sessions/{session}", headers=named))["adapter_version"] == 1
    own = {"Origin": str(http.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    ok(http.post(reset, headers=own))
