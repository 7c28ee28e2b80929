"""The Python client against a live server, and against servers that misbehave."""

import asyncio
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_harness import HANG_S, LiveServer
from stub_server import Stub, stubbed

from innerloop import (
    AsyncClient,
    AsyncHouse,
    AsyncSession,
    Client,
    Conflict,
    Example,
    Forbidden,
    House,
    InnerloopError,
    Invalid,
    NotFound,
    Preference,
    RateLimited,
    Session,
    Unauthorized,
    Unavailable,
    calls,
)
from innerloop.calls import Call, adapt, generate, make_session, may_have_arrived

ROOT = Path(__file__).parents[3]
BOT = ROOT / "docs" / "examples" / "service_bot.py"
QUESTION, ANSWER = "Where is my order?", "Follow the small finch."
NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def client(live: LiveServer) -> Iterator[Client]:
    with Client(live.urls[0]) as made:
        yield made


def test_a_token_opens_one_session(live: LiveServer) -> None:
    with Client(live.urls[1], api_key="acme-key") as keyed:
        made = keyed.session("client-token").token(expires_in_s=60, scopes=["generate"])
    assert made.session_id == "client-token"
    assert made.token not in repr(made)
    with Client(live.urls[1], api_key=made.token) as page:
        assert page.session("client-token").generate(QUESTION, max_tokens=4).text
        with pytest.raises(Forbidden, match="scopes"):
            page.session("client-token").info()
        with pytest.raises(Forbidden, match="client-token"):
            page.session("another").generate(QUESTION)

    async def awaited() -> None:
        async with AsyncClient(live.urls[1], api_key="acme-key") as keyed:
            again = await keyed.session("client-token").token()
            assert again.token != made.token
            assert list(again.scopes) == ["generate", "teach", "read", "delete"]

    asyncio.run(awaited())


def test_events(client: Client, live: LiveServer) -> None:
    shop = client.session("client-events")
    told = shop.events()
    assert next(told).type == "ready"
    shop.adapt([(QUESTION, ANSWER)])
    seen = [next(told) for _ in range(3)]
    assert [event.type for event in seen] == ["created", "feedback", "adapted"]
    assert (seen[-1].adapter_version, seen[-1].items) == (1, [1])
    shop.delete()
    assert [event.type for event in told] == ["deleted"]
    client.session("client-events").generate(QUESTION, max_tokens=1)

    async def late() -> list[str]:
        async with AsyncClient(live.urls[0]) as made:
            found = []
            async for event in made.session("client-events").events(after=seen[-1].id):
                found.append(event.type)
                if event.type == "created":
                    break
            return found

    assert asyncio.run(late()) == ["ready", "created"]


def test_a_life(client: Client) -> None:
    shop = client.session("client-life")
    with pytest.raises(NotFound, match="client-life"):
        shop.info()
    untaught = shop.generate(QUESTION, max_tokens=12)
    assert (untaught.adapter_version, untaught.session_id) == (0, "client-life")
    learned = shop.adapt([(QUESTION, ANSWER), Example("Track my parcel", ANSWER)])
    assert (learned.accepted, learned.adapter_version, list(learned.items)) == (True, 1, [1, 2])
    assert shop.generate(QUESTION).text == ANSWER
    stream = shop.stream(QUESTION)
    assert "".join(stream) == ANSWER == stream.answer.text
    assert shop.correct(untaught, "See the barn.", comment="no").items == [3]
    assert shop.rate(shop.generate("Hello"), -1).accepted
    pair = Preference([{"role": "user", "content": "Bye"}], "Farewell.", "Hm.")
    assert shop.adapt([pair], steps=3, dry_run=True).steps == 3
    kinds = [(item.id, item.kind, item.status) for item in shop.items()]
    assert kinds[2:] == [(3, "correction", "applied"), (4, "rating", "applied")]
    assert kinds[0] == (1, "demonstration", "superseded")
    shop.forget(next(item for item in shop.items() if item.id == 3))
    assert shop.generate(QUESTION).text == ANSWER
    copy = client.new_session("client-copy", fork="client-life")
    assert copy.info().applied_items == shop.info().applied_items == 3
    with pytest.raises(Conflict, match="already"):
        client.new_session("client-copy")
    shop.delete()
    assert copy.generate(QUESTION).text == ANSWER
    assert client.new_session().id


def test_the_sessions_there_are(
    client: Client, live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("innerloop.calls.PAGE", 2)
    names = [f"client-list-{letter}" for letter in "abcde"]
    for name in names:
        client.new_session(name)
    client.session(names[1]).adapt([(QUESTION, ANSWER)])
    found = list(client.sessions(contains="client-list-"))
    assert [one.session_id for one in found] == names
    assert [one.adapter_version for one in found] == [0, 1, 0, 0, 0]
    (taught,) = client.sessions(contains="client-list-", taught=True)
    assert taught == client.session(names[1]).info()
    assert not list(client.sessions(contains="client-list-z"))

    async def main() -> list[str]:
        async with AsyncClient(live.urls[0]) as there:
            return [one.session_id async for one in there.sessions(contains="client-list-")]

    assert asyncio.run(main()) == names


def test_a_key_teaches_once(client: Client) -> None:
    shop = client.session("client-once")
    first = shop.adapt([(QUESTION, ANSWER)], idempotency_key="k")
    assert shop.adapt([(QUESTION, ANSWER)], idempotency_key="k") == first
    assert shop.info().items == 1
    with pytest.raises(Conflict, match="key"):
        shop.adapt([(QUESTION, "Else.")], idempotency_key="k")


def test_lessons_may_be_the_objects_of_the_contract(client: Client) -> None:
    session = client.session("dicts")
    chat = {"messages": [{"role": "user", "content": "Hello"}], "chosen": "Hi.", "rejected": "No."}
    assert len(session.adapt([{"prompt": QUESTION, "completion": ANSWER}, chat]).items) == 2
    with pytest.raises(Invalid, match="there is no such field"):
        session.adapt([{"prompt": QUESTION, "answer": ANSWER}])
    with pytest.raises(TypeError, match=r"a lesson is an Example.*, not str"):
        session.adapt((QUESTION, ANSWER))  # type: ignore[arg-type]


def test_an_address_without_a_scheme_is_refused_at_once() -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(Invalid, match="begins with http://"):
            kind("127.0.0.1:8811")


def test_the_same_feedback_counts_once(live: LiveServer, client: Client) -> None:
    session = client.session("impatient")
    answer = session.generate(QUESTION)
    session.correct(answer, ANSWER)
    for _ in range(3):
        session.rate(answer, -1)
    session.correct(answer, ANSWER)

    async def awaited() -> None:
        async with AsyncClient(live.urls[0]) as other:
            await other.session("impatient").rate(answer, -1)

    asyncio.run(awaited())
    assert [item.kind for item in session.items()] == ["correction", "rating"]
    assert session.rate(answer, 1).items == [3]  # another word about it is not the same one
    house = client.house()
    for _ in range(2):
        house.correct(answer, ANSWER)
    assert len(list(house.items())) == 1
    house.delete()


def test_refusals_have_types_and_the_servers_words(live: LiveServer, client: Client) -> None:
    shop = client.session("client-refused")
    with pytest.raises(Invalid, match="prompt") as caught:
        shop.generate("word " * 3000)
    assert caught.value.status == 422
    assert caught.value.errors[0]["path"] == "prompt"
    with pytest.raises(Invalid):
        shop.generate(QUESTION, temprature=1)
    with pytest.raises(Invalid):
        "".join(shop.stream(""))
    with pytest.raises(NotFound):
        shop.correct("cmpl-none", "a")
    with Client(live.urls[1]) as nobody, pytest.raises(Unauthorized):
        nobody.session("s").generate(QUESTION)
    with Client(live.urls[1], api_key="acme-key") as acme:
        assert acme.session("s").generate(QUESTION, max_tokens=2).session_id == "s"
    with Client(live.urls[1], api_key="acme-key") as acme, pytest.raises(Forbidden):
        acme.call(Call("GET", "/metrics"))


def test_the_same_with_asyncio(live: LiveServer) -> None:
    async def main() -> None:
        async with AsyncClient(live.urls[0]) as client:
            shops = [client.session(f"client-async-{n}") for n in range(4)]
            learned = await asyncio.gather(*(s.adapt([(QUESTION, ANSWER)]) for s in shops))
            assert all(one.accepted for one in learned)
            answers = await asyncio.gather(*(s.generate(QUESTION) for s in shops))
            assert [answer.text for answer in answers] == [ANSWER] * 4
            stream = shops[0].stream(QUESTION)
            assert "".join([text async for text in stream]) == stream.answer.text == ANSWER
            assert (await shops[0].rate(stream.answer, 1)).accepted
            assert [item.kind async for item in shops[0].items()] == ["demonstration", "rating"]
            await shops[0].forget(1)
            assert (await shops[0].info()).applied_items == 1
            await shops[1].delete()
            with pytest.raises(NotFound):
                await shops[1].info()
            copy = await client.new_session(fork="client-async-2")
            assert (await copy.generate(QUESTION)).text == ANSWER
            with pytest.raises(Invalid):
                await shops[0].generate("")

    asyncio.run(main())


def test_both_clients_take_the_same() -> None:
    for sync, twin in ((Client, AsyncClient), (Session, AsyncSession), (House, AsyncHouse)):
        for name, method in vars(sync).items():
            if not name.startswith("_") and name != "close":
                other = inspect.signature(getattr(twin, name)).parameters
                assert list(inspect.signature(method).parameters) == list(other), name


def test_a_house_is_what_all_sessions_begin_with(live: LiveServer) -> None:
    with Client(live.urls[1], api_key="operator-key") as keyed:
        house = keyed.house("client-shop")
        with pytest.raises(NotFound):
            house.info()
        learned = house.adapt([(QUESTION, ANSWER), ("How can I track my parcel?", ANSWER)])
        assert (learned.adapter_version, learned.accepted, learned.items) == (1, True, [1, 2])
        assert house.adapt([("a", "b")], dry_run=True).adapter_version == 1
        assert (house.info().adapter_version, house.info().items) == (1, 2)
        assert [item.completion for item in house.items()] == [ANSWER, ANSWER]
        house.forget(2)
        assert house.rollback(0).applied_items == 0
        house.delete()
        with pytest.raises(NotFound):
            house.delete()
    with Client(live.urls[1], api_key="acme-key") as acme:
        acme.house().adapt([(QUESTION, ANSWER), ("How can I track my parcel?", ANSWER)])
        answer = acme.session("house-1").generate(QUESTION)
        assert (answer.text, answer.adapter_version, answer.house_version) == (ANSWER, 0, 1)
        assert not acme.new_session(house=False).info().house
        assert acme.house().correct(answer, "See the barn.").accepted
        assert acme.session("house-1").generate(QUESTION).text == "See the barn."
        assert acme.house().rate(answer, -1).items == [4]
        acme.house().delete()


def test_a_house_without_waiting_for_it(live: LiveServer) -> None:
    async def main() -> None:
        async with AsyncClient(live.urls[1], api_key="operator-key") as keyed:
            house = keyed.house("async-shop")
            assert (await house.adapt([(QUESTION, ANSWER)])).accepted
            assert [item.id async for item in house.items()] == [1]
            assert (await house.info()).adapter_version == 1
            assert (await house.rollback(0)).adapter_version == 0
            await house.forget(1)
            await house.delete()

    asyncio.run(main())


@contextmanager
def scripted(answer: Callable[[int, dict[str, str]], tuple[int, Any]]) -> Iterator[str]:
    """A server that answers request number n as told; None breaks the connection off."""
    seen: list[int] = []

    class Handler(Stub):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            seen.append(1)
            status, body = answer(len(seen), dict(self.headers))
            if body is None:
                self.connection.close()
                return
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            if status in (429, 503):
                self.send_header("retry-after", "0")
            self.end_headers()
            self.wfile.write(data)

    with stubbed(Handler) as url:
        yield url


ANSWERED = {
    "id": "cmpl-1",
    "session_id": "s",
    "text": "",
    "finish_reason": "stop",
    "adapter_version": 0,
    "adapter_used": False,
    "usage": {},
}
LEARNED = {
    "session_id": "s",
    "adapter_version": 1,
    "accepted": True,
    "items": [1],
    "steps": 5,
    "examples_used": 1,
    "something_newer": True,
}


def test_a_server_that_is_away_is_asked_again_with_the_same_key() -> None:
    keys: list[str] = []

    def answer(number: int, headers: dict[str, str]) -> tuple[int, Any]:
        keys.append(headers["Idempotency-Key"])
        return [(0, None), (503, {"detail": "busy"}), (200, LEARNED)][number - 1]

    with scripted(answer) as url, Client(url) as client:
        assert client.session("s").adapt([("a", "b")]).accepted
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_too_many_requests_for_a_moment() -> None:
    answers = [(429, {"detail": "too many"}), (200, LEARNED)]
    with scripted(lambda number, _: answers[number - 1]) as url, Client(url) as client:
        assert client.session("s").adapt([("a", "b")]).accepted
    with (
        scripted(lambda *_: (429, {"detail": "too many"})) as url,
        Client(url, retries=1) as client,
        pytest.raises(RateLimited, match="too many"),
    ):
        client.session("s").adapt([("a", "b")])


def test_it_gives_up_in_the_end() -> None:
    with scripted(lambda *_: (503, {"detail": "Redis is away"})) as url:
        with Client(url, retries=2) as client, pytest.raises(Unavailable, match="Redis is away"):
            client.session("s").adapt([("a", "b")])

        async def main() -> None:
            async with AsyncClient(url, retries=1) as client:
                with pytest.raises(Unavailable, match="Redis is away"):
                    await client.session("s").adapt([("a", "b")])

        asyncio.run(main())
    with Client(NOBODY, retries=0) as client, pytest.raises(Unavailable, match="does not answer"):
        client.session("s").generate("a")


def test_a_call_that_came_through_before_its_reply_was_lost() -> None:
    def answer(number: int, _: dict[str, str]) -> tuple[int, Any]:
        return (0, None) if number == 1 else (409, {"detail": "there is one already"})

    with scripted(answer) as url, Client(url) as client:
        assert client.new_session("mine").id == "mine"
        with pytest.raises(Conflict):
            client.new_session("mine")


def test_a_call_that_was_held_up_did_nothing() -> None:
    def answer(number: int, _: dict[str, str]) -> tuple[int, Any]:
        return (429 if number % 2 else 409), {"detail": "there is one already"}

    async def awaited() -> None:
        async with AsyncClient(url) as client:
            with pytest.raises(Conflict):
                await client.new_session("another's")

    with scripted(answer) as url, Client(url) as client:
        with pytest.raises(Conflict):
            client.new_session("another's")
        asyncio.run(awaited())
    with Client(NOBODY, retries=0) as client, pytest.raises(Unavailable) as caught:
        client.new_session("another's")
    failure = caught.value.__cause__
    assert isinstance(failure, httpx.ConnectError)
    call = make_session("another's", None, None, True)
    assert not may_have_arrived(call, None, failure)
    assert may_have_arrived(call, None, httpx.ReadTimeout("no reply"))


def test_an_answer_of_503_makes_no_session_of_another_ones_own() -> None:
    """It may have been made all the same, and then the caller is to look."""

    def answer(number: int, _: dict[str, str]) -> tuple[int, Any]:
        return (503 if number % 2 else 409), {"detail": "there is one already"}

    async def awaited() -> None:
        async with AsyncClient(url) as client:
            with pytest.raises(Conflict):
                await client.new_session("shop", fork="template")
            with pytest.raises(Conflict):
                await client.import_session(b"zip", "shop")
            assert (await client.new_session()).id

    with scripted(answer) as url, Client(url) as client:
        with pytest.raises(Conflict):
            client.new_session("shop", fork="template")
        with pytest.raises(Conflict):
            client.import_session(b"zip", "shop")
        # Ids that are drawn here are nobody else's, and what was deleted is gone.
        assert client.new_session().id
        assert client.import_session(b"zip").id
        asyncio.run(awaited())
    assert may_have_arrived(calls.session("DELETE", "shop"), httpx.Response(503), None)


@pytest.mark.parametrize(("timeout_s", "read_s"), [(50.0, 60.0), (90.0, 90.0)])
def test_events_outlast_a_silence(live: LiveServer, timeout_s: float, read_s: float) -> None:
    seen: list[Any] = []

    async def noted(request: httpx.Request) -> None:
        seen.append(request.extensions["timeout"]["read"])

    async def awaited() -> None:
        async with AsyncClient(live.urls[0], timeout_s=timeout_s) as client:
            client._http.event_hooks["request"] = [noted]
            async for event in client.session("client-silent").events():
                assert event.type == "ready"
                break

    asyncio.run(awaited())
    with Client(live.urls[0], timeout_s=timeout_s) as client:
        client._http.event_hooks["request"] = [
            lambda request: seen.append(request.extensions["timeout"]["read"])
        ]
        assert next(client.session("client-silent").events()).type == "ready"
        "".join(client.session("client-silent").stream(QUESTION, max_tokens=1))
    assert seen == [read_s, read_s, timeout_s]


def test_answers_may_hold_what_unicode_calls_line_ends() -> None:
    text = "one\u2028two\x85three"
    done = {**ANSWERED, "text": text}
    events = f"event: delta\ndata: {json.dumps({'text': text}, ensure_ascii=False)}\n\n"
    events += f"event: done\ndata: {json.dumps(done, ensure_ascii=False)}\n\n"
    with scripted(lambda *_: (200, events.encode())) as url, Client(url) as client:
        stream = client.session("s").stream("a")
        assert "".join(stream) == stream.answer.text == text


@pytest.mark.parametrize("body", [b"<html>Bad gateway</html>", b"[1]", b""])
def test_answers_that_are_none_of_ours(body: bytes) -> None:
    with (
        scripted(lambda *_: (502, body)) as url,
        Client(url) as client,
        pytest.raises(InnerloopError, match="502") as caught,
    ):
        client.session("s").generate("a")
    assert caught.value.status == 502
    with (
        scripted(lambda *_: (200, b"<html>A page</html>")) as url,
        Client(url) as client,
        pytest.raises(InnerloopError, match="no JSON"),
    ):
        client.session("s").generate("a")


def test_a_stream_that_breaks_off_says_so() -> None:
    half = b'event: delta\ndata: {"text": "Half"}\n\n'
    with scripted(lambda *_: (200, half)) as url, Client(url) as client:
        stream = client.session("s").stream("a")
        pieces = iter(stream)
        assert next(pieces) == "Half"
        with pytest.raises(InnerloopError, match="broke off"):
            next(pieces)
        with pytest.raises(InnerloopError, match="broke off"):
            _ = stream.answer
    broken = half + b'event: error\ndata: {"status": 503, "detail": "stopping"}\n\n'
    with (
        scripted(lambda *_: (200, broken)) as url,
        Client(url) as client,
        pytest.raises(Unavailable, match="stopping"),
    ):
        "".join(client.session("s").stream("a"))


def test_the_service_bot(live: LiveServer, tmp_path: Path) -> None:
    rows = [{"text": QUESTION, "answer": ANSWER}, {"text": "Track my parcel", "answer": ANSWER}]
    answers = tmp_path / "answers.jsonl"
    answers.write_text("\n".join(map(json.dumps, rows)) + "\n")

    def bot(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(BOT), str(answers), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)

    done = bot(QUESTION, "--url", live.urls[0])
    assert (done.returncode, done.stdout) == (0, f"{ANSWER}\n"), done.stderr
    away = bot(QUESTION, "--url", live.urls[1])
    assert away.returncode == 1
    assert "key" in away.stderr
    answers.write_text(json.dumps(rows[0]) + "\nnot JSON\n")
    cut = bot(QUESTION, "--url", live.urls[0])
    assert (cut.returncode, f"{answers}:2: this line is no JSON" in cut.stderr) == (1, True)


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_leads_elsewhere_is_refused_before_it_is_sent(
    client: Client, name: str
) -> None:
    session = client.session(name)
    for call in (session.info, session.delete, session.token, lambda: client.export(name)):
        with pytest.raises(Invalid, match="cannot be called"):
            call()


@pytest.mark.parametrize(
    ("name", "told"), [("a:1@x", True), (".a", True), ("..", False), ("ü", False), ("a\n", False)]
)
def test_proxies_are_told_which_session_it_is(name: str, told: bool) -> None:
    for call in (generate(name, "Hello", False, {}), adapt(name, [], None, False, None)):
        assert call.headers.get("X-Session-ID") == (name if told else None)
