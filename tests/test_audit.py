"""`make audit` with the real pip-audit, on a list of vulnerabilities of our own in OSV's format."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

ROOT = Path(__file__).parents[1]


class List(BaseHTTPRequestHandler):
    """Knows one thing about one package."""

    known: ClassVar[dict[str, Any]] = {
        "id": "GHSA-aaaa-bbbb-cccc",
        "summary": "It spills.",
        "modified": "2026-01-01T00:00:00Z",
        "published": "2026-01-01T00:00:00Z",
        "affected": [
            {
                "package": {"name": "pydantic", "ecosystem": "PyPI"},
                "ranges": [
                    {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}
                ],
            }
        ],
    }

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = {"vulns": [self.known]} if asked["package"]["name"] == "pydantic" else {}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), List) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def patient(tmp_path: Path) -> Path:
    """The script with longer limits: on a busy machine 120 s may not do, nor 5 s an answer."""
    text = (ROOT / ".ci" / "audit").read_text()
    for hasty, long in (
        ("LIMIT_S = 120", "LIMIT_S = 600"),
        ('"--timeout", "5"', '"--timeout", "600"'),
    ):
        assert hasty in text
        text = text.replace(hasty, long)
    script = tmp_path / "audit"
    script.write_text(text)
    return script


def audit(
    script: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> "subprocess.CompletedProcess[str]":
    monkeypatch.setenv("PIP_AUDIT_VULNERABILITY_SERVICE", "osv")
    monkeypatch.setenv("PIP_AUDIT_OSV_URL", url)
    command = [sys.executable, str(script)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_is_known_of_a_package_fails_the_audit(
    patient: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = audit(patient, url, monkeypatch)
    assert done.returncode == 1, done.stderr
    (told, summary) = done.stdout.splitlines()
    assert told.startswith("audit: pydantic ")
    assert told.endswith(": GHSA-aaaa-bbbb-cccc, fixed in 99.0")
    assert ", 1 known vulnerabilities, " in summary


def test_a_list_out_of_reach_is_no_clean_bill(monkeypatch: pytest.MonkeyPatch) -> None:
    done = audit(ROOT / ".ci" / "audit", "http://127.0.0.1:1/", monkeypatch)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("audit: NOT DONE: ")
    assert done.stdout.count("\n") == 1
