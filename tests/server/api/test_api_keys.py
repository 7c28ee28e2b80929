"""Keys that operators make and revoke while the server runs, and the log of what operators did."""

import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_calls import ask, ok, problem, teach
from server_harness import LiveServer
from server_process import Server, serving

Enter = Callable[..., httpx.Client]
SHARED = 2  # a face without an operator's key of its own


def made(http: httpx.Client, **body: Any) -> dict[str, Any]:
    return ok(http.post("/admin/keys", json={"tenant": "acme", "role": "client", **body}), 201)


@pytest.fixture
def operator(enter: Enter) -> httpx.Client:
    return enter("operator-key")


def test_a_key_is_made_used_and_revoked_on_every_face(enter: Enter, operator: httpx.Client) -> None:
    response = operator.post("/admin/keys", json={"tenant": "globex", "role": "client"})
    assert response.headers["cache-control"] == "no-store"
    key = ok(response, 201)
    assert key["key"].startswith("il_")
    assert (key["tenant"], key["role"], key["expires_at"]) == ("globex", "client", None)
    faces = [enter(key["key"]), enter(key["key"], SHARED)]
    teach(faces[0], "stored")
    assert [ok(face.get("/sessions/stored"))["items"] for face in faces] == [2, 2]
    assert ok(enter("globex-key").get("/sessions/stored"))["items"] == 2  # the same tenant
    problem(faces[0].get("/admin/keys"), 403)
    problem(enter("acme-key").get("/sessions/stored"), 404)
    assert operator.delete(f"/admin/keys/{key['id']}").status_code == 204
    for face in faces:
        assert "revoked" in problem(face.get("/sessions/stored"), 401)["detail"]
    problem(operator.delete(f"/admin/keys/{key['id']}"), 404)


def test_the_list_has_no_secret(operator: httpx.Client, guarded: LiveServer) -> None:
    keys = [made(operator, name=f"Zoë {number}") for number in range(3)]
    before = ok(operator.get("/admin/keys"))
    assert before["total"] >= 3
    rows = [row for row in before["keys"] if row["name"].startswith("Zoë")]
    assert [row["name"] for row in rows[:3]] == ["Zoë 2", "Zoë 1", "Zoë 0"]
    assert rows[0]["last4"] == keys[-1]["key"][-4:]
    page = ok(operator.get("/admin/keys", params={"offset": 1, "limit": 1}))
    assert page["keys"] == before["keys"][1:2]
    connection, names = guarded.runtime.store._room.connection, guarded.runtime.store._room.keys
    kept = b"".join(guarded.call(connection.read("HVALS", names.api_keys)))
    for key in keys:
        assert key["key"].encode() not in kept
        assert key["key"][16:] not in str(before)


def test_expired_wrong_and_cut_keys_open_nothing(
    enter: Enter, operator: httpx.Client, guarded: LiveServer
) -> None:
    key = made(operator, expires_in_s=3600)
    assert key["expires_at"] == pytest.approx(key["created_at"] + 3600)
    text = key["key"]
    ok(enter(text).get("/v1/models"))
    other = made(operator)["key"]
    for wrong in (text[:-1], text + "x", text[:16] + other[16:], text.upper(), "il_", "il_a_b"):
        problem(enter(wrong).get("/v1/models"), 401)
    connection, names = guarded.runtime.store._room.connection, guarded.runtime.store._room.keys
    record = guarded.call(connection.read("HGET", names.api_keys, key["id"]))
    past = re.sub(rb'"expires_ms":\d+', b'"expires_ms":1', record)
    guarded.call(connection.write("HSET", names.api_keys, key["id"], past))
    assert "expired" in problem(enter(text).get("/v1/models"), 401)["detail"]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"role": "client"}, "tenant"),
        ({"role": "root", "tenant": "a"}, "role"),
        ({"role": "client", "tenant": "a/b"}, "tenant"),
        ({"role": "client", "tenant": "a", "expires_in_s": 0}, "expires_in_s"),
        ({"role": "client", "tenant": "a", "key": "mine"}, "key"),
    ],
)
def test_bad_keys(operator: httpx.Client, body: dict[str, Any], path: str) -> None:
    total = ok(operator.get("/admin/keys"))["total"]
    document = problem(operator.post("/admin/keys", json=body), 422)
    assert document["errors"][0]["path"] == path
    assert ok(operator.get("/admin/keys"))["total"] == total


def test_what_operators_do_is_written_down(enter: Enter, operator: httpx.Client) -> None:
    session, tenant = "audited", {"X-Tenant": "acme"}
    root = ok(operator.post("/admin/keys", json={"role": "operator"}), 201)
    acting = enter(root["key"], **tenant)
    teach(enter("acme-key"), session)
    teach(enter("acme-key"), session, [{"prompt": "Hello?", "completion": "Good day."}])
    at = f"/admin/sessions/{session}"
    ok(acting.post(f"{at}/rollback", json={"adapter_version": 1}))
    problem(acting.post(f"{at}/rollback", json={"adapter_version": 77}), 404)
    ok(acting.post(f"{at}/pin", json={"pinned": True}))
    assert acting.get(f"{at}/export").status_code == 200
    ok(acting.post(f"{at}/reset"))
    ok(acting.delete(f"/sessions/{session}/feedback/1"))
    assert acting.delete(f"/sessions/{session}").status_code == 204
    problem(acting.post(f"{at}/reset"), 404)  # nothing was begun
    assert operator.delete(f"/admin/keys/{root['id']}").status_code == 204
    page = ok(operator.get("/admin/audit", params={"limit": 10}))
    entries = [(e["action"], e["who"], e.get("session_id")) for e in page["entries"]]
    mine = [(name, root["id"], session) for name in ("delete", "forget", "reset", "export", "pin")]
    assert entries == [
        ("revoke key", "environment", None),
        *mine,
        *[("rollback", root["id"], session)] * 3,
        ("make key", "environment", None),
    ]
    assert {e["tenant"] for e in page["entries"][1:9]} == {"acme"}
    assert page["entries"][6]["outcome"] == "failed: VersionNotFound"
    assert page["entries"][8]["fields"] == {"adapter_version": "1"}
    assert page["entries"][8]["outcome"] == "begun"
    later = ok(operator.get("/admin/audit", params={"offset": 3, "limit": 2}))
    assert later["entries"] == page["entries"][3:5]
    problem(enter("acme-key").get("/admin/audit"), 403)


def test_no_entry_no_action(enter: Enter, guarded: LiveServer, operator: httpx.Client) -> None:
    """Where the audit log cannot be written, what it is about does not happen."""
    teach(enter("acme-key"), "kept")
    connection, names = guarded.runtime.store._room.connection, guarded.runtime.store._room.keys
    aside = f"{names.audit}-aside"
    guarded.call(connection.write("RENAME", names.audit, aside))
    guarded.call(connection.write("SET", names.audit, "in the way"))
    acting, keys = enter("operator-key", **{"X-Tenant": "acme"}), ok(operator.get("/admin/keys"))
    problem(acting.post("/admin/sessions/kept/reset"), 500)
    problem(acting.delete("/sessions/kept"), 500)
    problem(acting.post("/admin/keys", json={"role": "operator"}), 500)
    guarded.call(connection.write("RENAME", aside, names.audit))
    assert ok(acting.get("/sessions/kept"))["adapter_version"] == 1
    assert ok(operator.get("/admin/keys"))["total"] == keys["total"]
    assert enter("acme-key").delete("/sessions/kept").status_code == 204  # the tenant's own


@pytest.fixture
def folder(tmp_path: Path, model_folder: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "tiny"))  # as `serving` expects


def test_a_server_that_was_given_a_key_is_never_open_again(folder: Path, tmp_path: Path) -> None:
    """Nor after kill -9; and its log, at its most talkative, has no key, no token and no prompt."""
    data = tmp_path / "data"
    with serving(folder, data) as server:
        assert "operator" in problem(_make(server, role="client", tenant="acme"), 409)["detail"]
        ok(server.http.get("/admin/sessions"))  # still open
        early = ok(server.http.post("/sessions/a/tokens"), 201)["token"]
        root = ok(_make(server, role="operator"), 201)
        problem(server.http.get("/admin/sessions"), 401)  # from this moment on
        _show(server, root["key"])
        client = ok(_make(server, role="client", tenant="acme"), 201)
        assert "last" in problem(server.http.delete(f"/admin/keys/{root['id']}"), 409)["detail"]
        _show(server, client["key"])
        token = ok(server.http.post("/sessions/a/tokens"), 201)["token"]
        server.stop(signal.SIGKILL)
    with serving(folder, data, INNERLOOP_LOG_LEVEL="debug") as server:
        problem(server.http.get("/admin/sessions"), 401)
        answers = {token: 404, client["key"]: 404, "hush-wrong": 401, early: 401}
        for text, status in answers.items():
            _show(server, text)
            problem(server.http.get("/sessions/a"), status)
            for prompt in ("hush question", "hush " * 300):
                lesson = {"prompt": prompt, "completion": "hush answer"}
                server.http.post("/generate", json={"session_id": "b", "prompt": prompt})
                server.http.post("/adapt", json={"session_id": "b", "examples": [lesson]})
                server.http.post("/adapt", content=f'{{"hush": {prompt}')
        _show(server, token)
        assert ask(server.http, "a")["session_id"] == "a"
        _show(server, root["key"])
        assert ok(server.http.get("/admin/audit"))["total"] == 7
        assert server.http.delete(f"/admin/keys/{client['id']}").status_code == 204
        _show(server, token)
        problem(server.http.get("/sessions/a"), 401)
        assert server.stop() == 0
    log = (tmp_path / "log").read_text()
    assert "DEBUG" in log
    assert "/adapt" in log
    for secret in ("hush", *(key[-20:] for key in (root["key"], client["key"], token, early))):
        assert secret not in log, [line for line in log.splitlines() if secret in line]


def _show(server: Server, key: str) -> None:
    server.http.headers["Authorization"] = f"Bearer {key}"


def _make(server: Server, **body: str) -> httpx.Response:
    return server.http.post("/admin/keys", json=body)
