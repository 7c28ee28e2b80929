"""The commands against a live server: what they print, what they refuse, and how they end."""

import io
import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from server_harness import HANG_S, LiveServer
from server_process import ROOT, command, environment
from stub_server import Stub, stubbed

from innerloop import Client
from server.cli import main
from server.commands import COMMANDS
from server.commands.lessons import read_lines
from server.commands.output import lesson_line, shown

QUESTION, ANSWER = "Where is my order?", "Follow the small finch."
LINES = [
    {"prompt": QUESTION, "completion": ANSWER},
    {"messages": [{"role": "user", "content": "How can I track my parcel?"}], "completion": ANSWER},
]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    live: LiveServer,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Runs a command in this process, in an empty folder; gives code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*args: str | Path, stdin: str = "", url: str = live.urls[0]) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capfd.readouterr()
        code = main([*map(str, args), "--url", url])
        found = capfd.readouterr()
        return code, found.out, found.err

    return call


def documents(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_teach_and_ask(run: Run, tmp_path: Path) -> None:
    (tmp_path / "shop.jsonl").write_text("\ufeff" + jsonl(*LINES) + "\n\n", encoding="utf-8")
    code, out, err = run("adapt", "shop.jsonl", "-s", "cmd-a", "--dry-run", "--json")
    assert (code, err) == (0, "")
    assert [(d["accepted"], d["items"], d["lines"]) for d in documents(out)] == [(True, [], [1, 2])]
    code, out, _ = run("adapt", "shop.jsonl", "-s", "cmd-a")
    assert code == 0
    assert "learned from 2 examples" in out
    assert "now version 1" in out
    assert run("generate", "-s", "cmd-a", QUESTION)[:2] == (0, ANSWER + "\n")
    assert run("generate", "-s", "cmd-a", stdin=f" {QUESTION}\n")[1] == ANSWER + "\n"
    code, out, _ = run("generate", "-s", "cmd-a", QUESTION, "--json", "--adapter-version", "0")
    [found] = documents(out)
    assert (found["adapter_version"], found["session_id"]) == (0, "cmd-a")
    assert found["text"] != ANSWER
    choice = ["--choice", ANSWER, "--choice", "No."]
    assert run("generate", "-s", "cmd-a", QUESTION, *choice)[1] == ANSWER + "\n"


def test_batches_and_refusals(run: Run) -> None:
    rows = [{"prompt": f"Question {n}?", "completion": "Yes."} for n in range(5)]
    code, out, _ = run(
        "adapt", "-", "-s", "cmd-b", "--batch", "2", "--steps", "2", "--json", stdin=jsonl(*rows)
    )
    assert [d["lines"] for d in documents(out)] == [[1, 2], [3, 4], [5, 5]]
    assert [d["items"] for d in documents(out)] == [[1, 2], [3, 4], [5]]
    assert code == (0 if all(d["accepted"] for d in documents(out)) else 1)
    code, _, err = run(
        "adapt",
        "-",
        "-s",
        "cmd-b",
        stdin=jsonl(LINES[0], {"prompt": "x", "completion": "word " * 400}),
    )
    assert code == 2
    assert "line 2: " in err
    long = {"prompt": "x", "completion": "word " * 400}
    code, out, err = run(
        "adapt", "-", "-s", "cmd-f", "--batch", "2", "--json", stdin=jsonl(*rows[:3], long)
    )
    assert (code, [d["lines"] for d in documents(out)]) == (1, [[1, 2]])
    assert "learned before this: 1 to 2\n" in err
    assert "line 4: " in err


def test_what_a_pinned_session_is_taught_waits(run: Run) -> None:
    lesson = jsonl(LINES[0])
    assert run("adapt", "-", "-s", "cmd-p", stdin=jsonl(LINES[1]))[0] == 0
    run("sessions", "pin", "cmd-p")
    code, out, err = run("adapt", "-", "-s", "cmd-p", stdin=lesson)
    assert (code, out.startswith("waiting: the session is pinned")) == (0, True)
    assert "1 of 1 examples wait until the session is unpinned" in err
    code, out, _ = run(
        "adapt", "-", "-s", "cmd-p", "--json", stdin=jsonl({**LINES[0], "prompt": "?"})
    )
    [told] = documents(out)
    assert (code, told["accepted"], told["waiting"]) == (0, False, True)
    run("sessions", "unpin", "cmd-p")


def test_the_calls_of_the_page_on_commands(run: Run, live: LiveServer, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for row in (LINES[0], LINES[1], {**LINES[0], "prompt": "Where?"}):
        assert run("adapt", "-", "-s", "shop-1", stdin=jsonl(row))[0] == 0
    assert run("export", "shop-1", "-o", "adapter.zip")[0] == 0
    calls = [block for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "curl" in block]
    script = "\n".join(calls).replace("localhost:8000", live.urls[0])
    done = subprocess.run(
        ["bash", "-ec", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert '"session_id":"shop-2","adapter_version":1' in done.stdout  # its own numbers
    assert '"pinned":true' in done.stdout
    assert '"session_id":"imported","adapter_version":1' in done.stdout
    run("sessions", "unpin", "shop-1")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "nested too deep"),
        ("[]", "expected an object"),
        ('{"prompt": "a"}', "either `completion`"),
        ('{"prompt": "a", "completion": " "}', "not blank"),
        ('{"prompt": "a", "completion": 3}', "not blank"),
        ('{"completion": "b"}', "either `prompt`"),
        ('{"prompt": "a", "chosen": "b"}', "`chosen` and `rejected`"),
        ('{"prompt": "a", "completion": "b", "colour": 1}', "no field 'colour'"),
        ('{"messages": [], "completion": "b"}', "list of turns"),
        ('{"messages": [{"role": "user"}], "completion": "b"}', "a `role` and a `content`"),
        ('{"messages": [{"role": "me", "content": "a"}], "completion": "b"}', "is one of"),
        ('{"messages": [{"role": "system", "content": "a"}], "completion": "b"}', "role user"),
    ],
)
def test_bad_lines_have_numbers(line: str, told: str) -> None:
    good = jsonl(LINES[0], {"prompt": "a", "chosen": "\u2028b", "rejected": "c"})
    lines, errors = read_lines((good + "\n" + line + "\n").encode())
    assert [one.number for one in lines] == [1, 2]
    assert [(number, told in message) for number, message in errors] == [(4, True)]


def test_nothing_is_sent_of_a_file_with_a_bad_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(jsonl(*LINES).encode() + b'\xff\n{"a": 1}\n' * 8)
    code, out, err = run("adapt", "bad.jsonl", "-s", "cmd-none")
    assert (code, out) == (2, "")
    assert "bad.jsonl:3: this is not UTF-8\nbad.jsonl:4: there is no field 'a'" in err
    assert err.endswith("16 lines of bad.jsonl are wrong; nothing was sent\n")
    assert run("sessions", "show", "cmd-none")[0] == 1
    assert run("adapt", "nowhere.jsonl", "-s", "cmd-none")[0] == 2
    assert run("adapt", "-", "-s", "cmd-none")[0] == 2


def test_sessions(run: Run, live: LiveServer) -> None:
    with Client(live.urls[0]) as client:
        for name in ("cmd-s1", "cmd-s2"):
            client.session(name).adapt([(QUESTION, ANSWER)])
        client.new_session("cmd-s3")
    code, out, _ = run("sessions", "list", "--contains", "cmd-s", "--sort", "session_id", "--asc")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "session",
        "cmd-s1",
        "cmd-s2",
        "cmd-s3",
    ]
    assert run("sessions", "--contains", "cmd-s", "--sort", "session_id", "--asc")[1] == out
    _, out, _ = run("sessions", "list", "--contains", "cmd-s", "--untaught", "--json")
    assert [row["session_id"] for row in documents(out)] == ["cmd-s3"]
    _, out, _ = run("sessions", "list", "--contains", "cmd-s", "--limit", "2", "--json")
    assert len(documents(out)) == 2
    _, out, _ = run("sessions", "show", "cmd-s1")
    assert "1     demonstration  applied  Where is my order?" in out
    assert documents(run("sessions", "show", "cmd-s1", "--json")[1])[0]["items"] == 1
    assert "untaught" in run("sessions", "reset", "cmd-s1")[1]
    _, out, _ = run("sessions", "rollback", "cmd-s1", "1", "--json")
    assert documents(out)[0]["adapter_version"] == 1
    assert "pinned" in run("sessions", "pin", "cmd-s1")[1]
    assert "pinned" not in run("sessions", "unpin", "cmd-s1")[1]
    code, _, err = run("sessions", "rollback", "cmd-s1", "9")
    assert code == 1
    assert "no version 9" in err
    code, _, err = run("sessions", "delete", "cmd-s1")
    assert code == 2
    assert "--yes" in err
    assert run("sessions", "delete", "cmd-s1", "--yes")[0] == 0
    code, out, err = run("sessions", "show", "cmd-s1")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1


def test_an_adapter_goes_out_and_comes_back(run: Run, live: LiveServer, tmp_path: Path) -> None:
    with Client(live.urls[0]) as client:
        client.session("cmd:e").adapt([(QUESTION, ANSWER)])
    _, out, _ = run("export", "cmd:e", "--json")
    content = (tmp_path / "cmd_e-1.zip").read_bytes()
    assert documents(out)[0] == {
        "session_id": "cmd:e",
        "adapter_version": 1,
        "file": "cmd_e-1.zip",
        "bytes": len(content),
    }
    (tmp_path / "mine.zip").write_text("mine")
    code, _, err = run("export", "cmd:e", "-o", "mine.zip")
    assert code == 1
    assert "--force" in err
    assert (tmp_path / "mine.zip").read_text() == "mine"
    assert run("export", "cmd:e", "-o", "mine.zip", "--force")[0] == 0
    assert (tmp_path / "mine.zip").read_bytes() == content
    assert run("export", "cmd:e", "-o", "nowhere/mine.zip")[0] == 1
    assert run("export", "cmd:e", "--adapter-version", "7")[0] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cmd_e-1.zip", "mine.zip"]

    code, out, _ = run("import", "mine.zip", "--session", "cmd-i", "--json")
    assert documents(out)[0]["imported"] is True
    assert run("generate", "-s", "cmd-i", QUESTION)[1] == ANSWER + "\n"
    code, _, err = run("import", "mine.zip", "--session", "cmd-i")
    assert (code, "already" in err) == (1, True)
    code, _, err = run("adapt", "-", "-s", "cmd-i", stdin=jsonl(LINES[0]))
    assert (code, "imported" in err) == (1, True)
    (tmp_path / "mine.zip").write_text("no zip")
    code, _, err = run("import", "mine.zip")
    assert (code, "no zip file" in err) == (2, True)
    (tmp_path / "folder").mkdir()
    code, _, err = run("import", "folder")
    assert (code, "adapter_config.json" in err) == (2, True)


def test_chat(run: Run) -> None:
    lines = [
        f"/teach {QUESTION} => {ANSWER}",
        QUESTION,
        "/good",
        "/correct See the barn.",
        "/items",
        QUESTION,
        "/forget",
        "/session",
        "/session cmd-other",
        "/help",
        QUESTION,
    ]
    code, out, err = run("chat", "-s", "cmd-c", "--json", stdin="\n".join(lines))
    assert code == 0
    said = documents(out)
    assert [next(iter(one)) for one in said] == [
        "adapted",
        "answer",
        "adapted",
        "adapted",
        "item",
        "item",
        "item",
        "answer",
        "forgotten",
        "session",
        "answer",
    ]
    assert said[1]["answer"]["text"] == ANSWER
    assert said[7]["answer"]["text"] == "See the barn."
    assert said[9]["session"]["session_id"] == "cmd-c"
    assert (said[10]["answer"]["session_id"], said[10]["answer"]["adapter_version"]) == (
        "cmd-other",
        0,
    )
    assert "/teach QUESTION => ANSWER" in err

    wrong = [
        "/nope",
        "/good",
        "/correct x",
        "/teach x",
        "/forget x",
        "/forget 99",
        "/quit",
        "never",
    ]
    code, out, err = run("chat", "-s", "cmd-c", stdin="\n".join(wrong))
    assert (code, out) == (1, "")
    assert err.count("innerloop: ") == 6
    lines = [f"/teach {QUESTION} => {ANSWER}", QUESTION, "Hm?", "/clear", QUESTION]
    code, out, _ = run("chat", "-s", "cmd-d", "--earlier", "--json", stdin="\n".join(lines))
    assert code == 0
    tokens = [d["answer"]["usage"]["prompt_tokens"] for d in documents(out) if "answer" in d]
    assert tokens[1] > tokens[0] == tokens[2]
    assert run("chat", "-s", "cmd-d", stdin=QUESTION)[1] == ANSWER + "\n"


def test_who_may_do_what(run: Run, live: LiveServer) -> None:
    keyed = live.urls[1]
    code, _, err = run("generate", "-s", "cmd-k", "Hello", url=keyed)
    assert (code, "--key" in err) == (1, True)
    assert run("generate", "-s", "cmd-k", "Hello", "--key", "acme-key", url=keyed)[0] == 0
    code, out, _ = run("sessions", "list", "--key", "acme-key", url=keyed)
    assert (code, "cmd-k" in out, "acme" in out) == (0, True, True)
    code, _, err = run("sessions", "show", "cmd-k", "--key", "acme-key", url=keyed)
    assert (code, "operator" in err) == (1, True)
    alone = ["--key", "operator-key"]
    code, _, err = run("sessions", "show", "cmd-k", *alone, url=keyed)
    assert (code, "'acme' has" in err, "--tenant" in err) == (1, True, True)
    run("generate", "-s", "cmd-k2", "Hello", *alone, url=keyed)
    assert "--tenant" in run("sessions", *alone, url=keyed)[2]
    operator = [*alone, "--tenant", "acme"]
    assert "--tenant" not in run("sessions", "list", *operator, url=keyed)[2]
    assert "cmd-k" in run("sessions", "show", "cmd-k", *operator, url=keyed)[1]
    assert run("sessions", "delete", "cmd-k", "-y", *operator, url=keyed)[0] == 0


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["generate", "-s", "a", "Hi", "--url", "http://127.0.0.1:9"], 3, "innerloop serve"),
        (["generate", "-s", "a", "Hi", "--url", "localhost:8000"], 2, "http://"),
        (["generate", "-s", "a", "Hi", "--url", "http://here:x"], 2, "--url"),
        (["generate", "-s", "a", "Hi", "--key", "schlüssel"], 2, "ASCII"),
        (["generate", "-s", "a b", "Hi"], 2, "session_id"),
        (["generate", "-s", "a", "Hi", "--max-tokens", "100000"], 2, "context"),
        (["generate", "-s", "a", ""], 2, "empty"),
    ],
)
def test_what_goes_wrong_is_told_in_a_line(
    live: LiveServer, args: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*args] if "--url" in args else [*args, "--url", live.urls[0]]) == code
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("innerloop: ")
    assert (found.err.count("\n"), told in found.err) == (1, True)


def test_keys(run: Run) -> None:
    """The contract of `/admin/keys`, as a server keeps it that knows 250 of them."""
    kept = [
        {
            "id": f"k{n}",
            "tenant": "acme",
            "role": "client",
            "name": "",
            "created_at": 1.0,
            "expires_at": None,
        }
        for n in range(250)
    ]
    seen: list[tuple[str, str, Any]] = []

    def answer(method: str, path: str, body: Any) -> tuple[int, Any]:
        seen.append((method, path, body))
        if method == "GET":
            query = dict(part.split("=") for part in path.partition("?")[2].split("&"))
            start, count = int(query["offset"]), int(query["limit"])
            return 200, {"keys": kept[start : start + count]}
        if method == "DELETE":
            return 204, None
        return 201, {**kept[0], **body, "key": "secret"}

    with _serving(answer) as url:
        code, out, err = run(
            "keys", "create", "--tenant", "acme", "--name", "bot", "--expires-in", "60", url=url
        )
        assert (code, out) == (0, "secret\n")
        assert "secret" not in err
        assert seen == [
            (
                "POST",
                "/admin/keys",
                {"tenant": "acme", "role": "client", "name": "bot", "expires_in_s": 60},
            )
        ]
        _, out, _ = run("keys", "list", "--json", url=url)
        assert [key["id"] for key in documents(out)] == [key["id"] for key in kept]
        assert len(run("keys", "list", url=url)[1].splitlines()) == 251
        assert run("keys", "revoke", "a/b", url=url)[0] == 0
        assert seen[-1][:2] == ("DELETE", "/admin/keys/a%2Fb")

    missing = "there is no route /admin/keys: /openapi.json lists all routes"
    with _serving(lambda *_: (404, {"detail": missing})) as url:
        code, _, err = run("keys", "list", url=url)
        assert (code, "INNERLOOP_API_KEYS" in err) == (1, True)
    with _serving(lambda *_: (404, {"detail": "there is no key 'x'"})) as url:
        assert "no key 'x'" in run("keys", "revoke", "x", url=url)[2]
    with _serving(lambda *_: (404, {"detail": "there is no key 'route'"})) as url:
        assert "no key 'route'" in run("keys", "revoke", "route", url=url)[2]


@pytest.mark.parametrize("args", [("keys", "revoke", "x"), ("sessions", "delete", "x", "--yes")])
def test_a_deletion_whose_reply_was_lost(run: Run, args: tuple[str, ...]) -> None:
    replies = [(503, {"detail": "Redis is away"}), (404, {"detail": "there is none"})]
    with _serving(lambda *_: replies.pop(0)) as url:
        assert run(*args, url=url)[0] == 0


@pytest.mark.parametrize(
    ("before", "after", "cell"),
    [(7.77, 0.0084, "7.770 -> 0.008"), (None, 0.0084, "-"), (7.77, None, "-"), (None, None, "-")],
)
def test_versions_without_a_loss_are_shown(
    run: Run, before: float | None, after: float | None, cell: str
) -> None:
    version = {
        "adapter_version": 1,
        "created_at": 1,
        "start": "session_init",
        "items": [1],
        "steps": 5,
        "loss_before": before,
        "loss_after": after,
        "snapshot_bytes": 9,
    }
    detail = {
        "session_id": "x",
        "tenant": "default",
        "adapter_version": 1,
        "created_at": 0,
        "used_at": 0,
        "items": 1,
        "applied_items": 1,
        "pending_items": 0,
        "versions": [version],
        "feedback": [],
    }
    with _serving(lambda *_: (200, detail)) as url:
        code, out, _ = run("sessions", "show", "x", url=url)
    assert (code, f"  {cell}  " in out) == (0, True)
    told = lesson_line({"accepted": True, "examples_used": 1, **version})
    assert ("loss" in told) == (cell != "-")


@contextmanager
def _serving(answer: Callable[[str, str, Any], tuple[int, Any]]) -> Iterator[str]:
    class Handler(Stub):
        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, found = answer(self.command, self.path, json.loads(body or b"null"))
            content = b"" if found is None else json.dumps(found).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = _do

    with stubbed(Handler) as url:
        yield url


def test_every_command_explains_itself_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        assert f"  innerloop {name}" in text
        assert "--url" in text or name in ("sessions", "keys")


def test_a_terminal_is_not_told_what_to_do() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert shown("a\x1b[2Jb\r\n\tc\x9b1m", Terminal()) == "a\ufffd[2Jb\ufffd\n\tc\ufffd1m"
    assert shown("a\x1b[2Jb", io.StringIO()) == "a\x1b[2Jb"


PATHS = f"{ROOT}{os.pathsep}{ROOT / 'server' / 'client'}"


def test_processes(live: LiveServer) -> None:
    """A closed pipe, Ctrl-C, and a conversation at a terminal."""
    env = environment(PYTHONPATH=PATHS, INNERLOOP_URL=live.urls[0])
    chat = subprocess.Popen(
        command("chat", "-s", "cmd-p"),
        env=env,
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert chat.stderr is not None
    assert chat.stderr.readline().startswith("session cmd-p")
    chat.send_signal(signal.SIGINT)
    assert chat.communicate(timeout=HANG_S) == ("", "")
    assert chat.returncode == 130

    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command("sessions", "list"),
        env=env,
        cwd=ROOT,
        stdout=writer,
        text=True,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        timeout=HANG_S,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")

    with Client(live.urls[0]) as client:
        client.session("cmd-q").generate("Hello", max_tokens=1)
    ours, theirs = pty.openpty()
    chat_at_terminal = subprocess.Popen(
        command("chat", "-s", "cmd-q", "--max-tokens", "150"),
        env=env,
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    terminal = _Terminal(ours)
    terminal.until(b"> ")
    with live.held_after(5) as still:  # else the answer may be faster than Ctrl-C
        os.write(ours, b"Tell me everything\n")
        assert still.wait(HANG_S)
        chat_at_terminal.send_signal(signal.SIGINT)
        terminal.until(b"(stopped)")
    terminal.until(b"> ")
    assert b"there is no answer to rate" in terminal.say(b"/good\n", b"> ")
    assert f"{ANSWER}\r\n".encode() not in terminal.say(b"/session\n", b"> ")
    os.write(ours, b"\x04")
    assert chat_at_terminal.wait(timeout=HANG_S) == 0
    os.close(ours)


class _Terminal:
    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._rest = descriptor, b""

    def until(self, end: bytes) -> bytes:
        """What is shown up to there; what comes after it is for the next call."""
        while end not in self._rest:
            self._rest += os.read(self._descriptor, 4096)
        found, _, self._rest = self._rest.partition(end)
        return found + end

    def say(self, text: bytes, end: bytes) -> bytes:
        os.write(self._descriptor, text)
        return self.until(end)


def test_a_house_is_taught_from_a_file(run: Run, live: LiveServer) -> None:
    url = live.urls[1]
    key = ("--key", "operator-key", "--tenant", "cmd-house")
    code, out, _ = run("adapt", "-", "--house", *key, "--json", stdin=jsonl(*LINES), url=url)
    assert (code, documents(out)[0]["adapter_version"], documents(out)[0]["lines"]) == (
        0,
        1,
        [1, 2],
    )
    with Client(url, api_key="operator-key") as client:
        assert client.house("cmd-house").info().applied_items == 2
    code, _, err = run("adapt", "-", "-s", "cmd-none", "--tenant", "x", stdin=jsonl(LINES[0]))
    assert (code, "--house" in err) == (2, True)
    with pytest.raises(SystemExit):
        run("adapt", "-", "-s", "cmd-none", "--house", stdin=jsonl(LINES[0]))
