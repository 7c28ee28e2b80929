"""`innerloop bench`: a load that keeps to the clock, and says honestly what came of it."""

import asyncio
import csv
import json
import signal
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from server_harness import HANG_S, LiveServer
from server_process import ROOT, command, environment
from stub_server import Stub, stubbed

from server.cli import main
from server.commands.load.plan import Arrival, Kind, Load, arrivals
from server.commands.load.runner import delete_sessions, run_load
from server.commands.load.tally import Measure, Tally
from server.commands.load.texts import SHOP

QUICK = ["--duration", "2", "--warmup", "0.3", "--max-tokens", "6", "--turns", "2"]


def test_arrivals_are_poisson_and_sessions_zipf() -> None:
    load = Load(rate=50, duration_s=390, warmup_s=10, sessions=1000, adapts=0.2, feedback=0.1)
    planned = arrivals(load)
    assert planned == arrivals(load)
    assert len(planned) == pytest.approx(20_000, rel=0.03)
    due_s = np.array([arrival.due_s for arrival in planned])
    gaps = np.diff(due_s)
    assert (gaps >= 0).all()
    # Exponential: the standard deviation is the mean; a metronome's would be 0.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    visits = Counter(arrival.session for arrival in planned)
    assert visits[0] / visits[9] == pytest.approx(10, rel=0.3)
    assert max(visits) < 1000
    kinds = Counter(arrival.kind for arrival in planned)
    assert kinds[Kind.ADAPT] / len(planned) == pytest.approx(0.2, rel=0.1)
    assert kinds[Kind.FEEDBACK] / len(planned) == pytest.approx(0.1, rel=0.1)
    assert arrivals(Load(seed=1)) != arrivals(Load())
    alike = Counter(a.session for a in arrivals(Load(rate=500, sessions=5, zipf=0)))
    assert max(alike.values()) / min(alike.values()) < 1.15


ANSWER = {
    "id": "cmpl-1",
    "session_id": "s",
    "text": "Yes.",
    "finish_reason": "stop",
    "adapter_version": 0,
    "adapter_used": False,
    "usage": {"completion_tokens": 1},
}


class Gathering(Stub):
    """Answers nobody before everybody is here."""

    waiting: ClassVar[threading.Barrier]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.waiting.wait(timeout=HANG_S)
        reply(self, 200, ANSWER)


def reply(stub: Stub, status: int, document: Any) -> None:
    content = json.dumps(document).encode()
    stub.send_response(status)
    stub.send_header("content-length", str(len(content)))
    stub.end_headers()
    stub.wfile.write(content)


def loaded(url: str, load: Load) -> Tally:
    tally, _ = asyncio.run(run_load(load, url, None, SHOP, "t"))
    return tally


ASKS = Load(rate=40, duration_s=1, warmup_s=0, adapts=0, feedback=0, stream=False, timeout_s=HANG_S)


def test_arrivals_do_not_wait_for_answers() -> None:
    Gathering.waiting = threading.Barrier(count := len(arrivals(ASKS)))
    with stubbed(Gathering) as url:
        tally = loaded(url, ASKS)
    assert not tally.failures
    assert len(tally.visits) == count > 20
    # The first waited for the last, and its latency has all of that.
    first, last = tally.visits[0], tally.visits[-1]
    assert first.whole_s is not None
    assert first.whole_s >= last.due_s - first.due_s


class Naughty(Stub):
    """Fails in the way that the test says."""

    how: ClassVar[str]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if self.how.isdecimal():
            reply(self, int(self.how), {"status": int(self.how), "detail": "no"})
        elif self.how == "no JSON":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")
        elif self.how == "cut stream":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'event: delta\ndata: {"text": "Ye"}\n\n')
        elif self.how == "error in stream":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'event: error\ndata: {"status": 503, "detail": "away"}\n\n')
        elif self.how == "silence":
            self.rfile.read(1)  # until the client has gone
        elif self.path == "/adapt":
            told = {"accepted": True, "items": [1], "steps": 1, "examples_used": 1}
            reply(self, 200, {"session_id": "s", "adapter_version": 1, **told})
        else:
            reply(self, 200, ANSWER)  # by version 0, which is older than the lesson


@pytest.mark.parametrize(
    ("how", "kind", "changes"),
    [
        ("503", "503", {}),
        ("429", "429", {}),
        ("500", "500", {}),
        ("no JSON", "broke off", {}),
        ("cut stream", "broke off", {"stream": True}),
        ("error in stream", "503", {"stream": True}),
        ("silence", "timed out", {"timeout_s": 0.2}),
        ("old version", "stale answer", {"adapts": 1.0}),
    ],
)
def test_failures_are_counted_by_kind(how: str, kind: str, changes: dict[str, Any]) -> None:
    Naughty.how = how
    load = Load(**{**vars(ASKS), "rate": 10, **changes})
    with stubbed(Naughty) as url:
        summary = loaded(url, load).summary()
    deed = {"generate": len(arrivals(load))}
    assert summary["failures"] == {kind: deed}
    assert summary["answered"] == summary["achieved_per_s"] == 0
    full = kind in ("503", "429")
    assert (summary["refused_by_server"], summary["failed"])[full] == 0
    assert summary["refused_by_server"] + summary["failed"] == deed["generate"]


def test_nobody_listens() -> None:
    url = "http://127.0.0.1:9"
    summary = loaded(url, ASKS).summary()
    assert set(summary["failures"]) == {"no connection"}
    assert asyncio.run(delete_sessions(url, None, ["a", "b"], lambda: None)) == 2


def test_the_warm_up_is_not_counted() -> None:
    load = Load(**{**vars(ASKS), "warmup_s": 0.5})
    Naughty.how = "old version"  # answers; nothing is taught here
    with stubbed(Naughty) as url:
        tally = loaded(url, load)
    counted = [arrival for arrival in arrivals(load) if arrival.due_s >= 0.5]
    assert 0 < len(counted) < len(arrivals(load))
    assert sorted(visit.due_s for visit in tally.visits) == [a.due_s for a in counted]
    assert tally.histograms[Measure.WHOLE_ANSWER].get_total_count() == len(counted)


def bench(live: LiveServer, capfd: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    capfd.readouterr()
    code = main(["bench", "--url", live.urls[0], *QUICK, *args])
    found = capfd.readouterr()
    return code, found.out, found.err


def sessions(live: LiveServer, prefix: str) -> int:
    with live.client() as http:
        return int(http.get("/admin/sessions", params={"contains": prefix}).json()["total"])


def test_a_load_on_a_live_server(
    live: LiveServer, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shares = ["--rate", "7", "--adapts", "0.3", "--feedback", "0.2", "--sessions", "4"]
    saved = ["--save", str(tmp_path / "new" / "results"), "--prefix", "gone", "--json"]
    code, out, err = bench(live, capfd, *shares, *saved)
    assert code == 0, out + err
    found = json.loads(out)
    kinds = found["arrivals_by_kind"]
    assert set(kinds) == {"ask", "adapt", "feedback"}
    assert found["answered"] == found["arrivals"] == sum(kinds.values())
    assert found["failures"] == {}
    counts = {name: one and one["count"] for name, one in found["latencies"].items()}
    assert counts["adapt_ms"] == kinds["adapt"]
    assert counts["feedback_ms"] == kinds["feedback"]
    assert counts["first_token_ms"] == counts["whole_answer_ms"] == kinds["ask"] + kinds["feedback"]
    taught = kinds["adapt"] + kinds["feedback"] - found["lessons_refused_by_guard"]
    assert counts["taught_first_token_ms"] == taught
    assert counts["sent_late_ms"] == found["arrivals"]
    for one in found["latencies"].values():
        assert one["p50"] <= one["p90"] <= one["p99"] <= one["p99.9"] <= one["max"]
    assert sessions(live, "gone-") == 0
    folder = tmp_path / "new" / "results"
    assert json.loads((folder / "report.json").read_text()) == found
    with (folder / "visits.csv").open(newline="") as rows:
        assert len(list(csv.DictReader(rows))) == found["arrivals"]
    assert "Percentile" in (folder / "adapt_ms.hgrm").read_text()
    for name in ("latency.svg", "timeline.svg"):
        assert "<svg" in (folder / name).read_text()


def test_a_load_of_ones_own_for_people(
    live: LiveServer, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    examples = tmp_path / "mine.jsonl"
    examples.write_text('{"prompt": "Who is Jo?", "completion": "Jo is here."}\n')
    mine = ["--examples-file", str(examples), "--no-stream", "--prefix", "kept", "--keep"]
    code, out, err = bench(live, capfd, "--rate", "6", *mine)
    assert code == 0, out + err
    assert "whole answer" in out
    assert "to the first token" not in out
    assert "between two tokens" not in out
    assert sessions(live, "kept-") > 0
    assert "kept" in err


def test_a_server_with_keys(live: LiveServer, capfd: pytest.CaptureFixture[str]) -> None:
    keyed = ["--url", live.urls[1], "--rate", "3", "--json"]
    assert bench(live, capfd, *keyed)[0] == 1
    code, out, _ = bench(live, capfd, *keyed, "--key", "acme-key")
    assert code == 0
    assert json.loads(out)["failures"] == {}


def test_ctrl_c_gives_the_report_so_far(live: LiveServer) -> None:
    paths = f"{ROOT}:{ROOT / 'server' / 'client'}"
    env = environment(PYTHONPATH=paths, INNERLOOP_URL=live.urls[0])
    long = [
        "--duration",
        "600",
        "--warmup",
        "0",
        "--rate",
        "20",
        "--adapts",
        "0",
        "--prefix",
        "cut",
    ]
    running = subprocess.Popen(
        command("bench", "--json", "--max-tokens", "4", "--prefix", "cut", *long),
        env=env,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while sessions(live, "cut-") < 3:
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=HANG_S)
    assert running.returncode == 130, err
    found = json.loads(out)
    assert found["interrupted"]
    assert 0 < found["counted_s"] < 600
    assert found["arrivals"] > 0
    assert sessions(live, "cut-") == 0


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--rate", "0"], "--rate"),
        (["--rate", "nan"], "--rate"),
        (["--duration", "-1"], "--duration"),
        (["--zipf", "-1"], "--zipf"),
        (["--adapts", "0.7", "--feedback", "0.7"], "shares"),
        (["--examples-file", "none.jsonl"], "none.jsonl"),
        (["--examples-file", "wrong.jsonl"], "wrong.jsonl:1"),
        (["--examples-file", "pair.jsonl"], "completion"),
        (["--save", "wrong.jsonl"], "no folder"),
    ],
)
def test_wrong_arguments_send_nothing(
    args: list[str],
    told: str,
    live: LiveServer,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.jsonl").write_text('{"prompt": "Who?"}\n')
    (tmp_path / "pair.jsonl").write_text('{"prompt": "Who?", "chosen": "a", "rejected": "b"}\n')
    code, out, err = bench(live, capfd, "--prefix", "never", *args)
    assert (code, out) == (2, "")
    assert told in err
    assert sessions(live, "never-") == 0


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--url", "http://127.0.0.1:1"]) == 3
    assert "innerloop serve" in capsys.readouterr().err


def test_a_chat_begins_again_after_its_turns() -> None:
    sent: list[int] = []

    class Listening(Stub):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            sent.append(len(body.get("messages", ())))
            reply(self, 200, ANSWER)

    from server.commands.load.http import Http
    from server.commands.load.visits import Visitors

    async def visit() -> None:
        async with Http(url, None, 10) as http:
            visitors = Visitors(http, Load(**{**vars(ASKS), "turns": 3}), SHOP, "t", 0.0)
            for _ in range(5):
                await visitors.visit(Arrival(0.0, 0, Kind.ASK, 0))

    with stubbed(Listening) as url:
        asyncio.run(visit())
    assert sent == [1, 3, 5, 1, 3]
