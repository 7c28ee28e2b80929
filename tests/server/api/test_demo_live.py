"""`innerloop demo` against a live server. The model is random, so only honesty is asked of it."""

import httpx
import pytest
from server_harness import LiveServer

from server.cli import main
from server.demo import DOGS_NO, DOGS_YES, RETURNS, DemoError, _Bot, demo


def test_demo_says_what_it_saw(live: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--url", live.urls[0]]) == 0
    shown = capsys.readouterr().out
    with live.client() as http:
        assert not http.get("/admin/sessions?contains=demo-").json()["total"]
        demo(live.urls[0], keep=True)
        assert http.get("/admin/sessions?contains=demo-").json()["total"] == 3
    for subject in (RETURNS, DOGS_YES, DOGS_NO):
        assert subject.answer in shown
    assert shown.count("steps over 5 examples") == 3
    learned = shown.count("learned, word for word")
    assert f"{learned} of 3 taught answers came back word for word." in shown
    assert "its own way" in shown or "the SAME" in shown


def test_demo_without_a_loss_to_tell(
    live: LiveServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = {"accepted": True, "duration_ms": 1, "steps": 5, "examples_used": 5}
    monkeypatch.setattr(_Bot, "teach", lambda *_: report | {"adapter_version": 1})
    demo(live.urls[0])
    assert capsys.readouterr().out.count("over 5 examples, now version 1") == 3


def test_demo_shows_its_key(live: LiveServer) -> None:
    with pytest.raises(DemoError, match="401"):
        demo(live.urls[1])
    demo(live.urls[1], "acme-key")


def test_demo_against_something_else(http: httpx.Client) -> None:
    with pytest.raises(DemoError, match="404"):
        demo(str(http.base_url) + "/nowhere")
