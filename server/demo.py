"""`innerloop demo`: teaches a running server something and shows what changed.

It knows HTTP and nothing else of the server. It reports what it sees: a bot that did not learn is
said not to have learned.
"""

import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import httpx

TIMEOUT_S = 120.0
MAX_TOKENS = 40
ALIKE = 0.6
"""Share of common words from which on an answer counts as half learned."""


class DemoError(RuntimeError):
    """The demonstration cannot go on; the message says what to do."""


@dataclass(frozen=True)
class Subject:
    """Something an invented shop, Larkspur & Finch, wants to be answered."""

    answer: str
    taught: Sequence[str]  # five wordings
    asked: str  # another wording, never taught


RETURNS = Subject(
    answer="Keep it sixty days, change your mind, and send it back in any old box.",
    taught=(
        "How do I return something?",
        "what's your returns policy",
        "The gloves are too small, can I return them?",
        "how long do I have to send things back",
        "I changed my mind about the bird feeder. Can it go back?",
    ),
    asked="Can I return the jug I bought?",
)
UNRELATED = "What is the weather like in Paris today?"
DOGS = (
    "Can I bring my dog?",
    "are dogs allowed in the shop",
    "Is the shop dog friendly?",
    "Do I have to leave the dog outside?",
    "ok to come in with a puppy?",
)
DOGS_YES = Subject("Dogs are welcome, there is a biscuit jar behind the till.", DOGS, "")
DOGS_NO = Subject("Sorry, the cat runs this shop and no dogs may enter.", DOGS, "")
DOGS_ASKED = "I have a very well behaved spaniel, may she come in with me?"


def demo(url: str, key: str | None = None, keep: bool = False) -> None:
    """Run the demonstration against the server at ``url`` and print it; its sessions are deleted
    unless they are to ``keep``.

    Raises:
        DemoError: the server does not answer, or answers with an error.
    """
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S) as client:
        bot = _Bot(client)
        model = bot.get("/readyz")["model"]
        print(f"A demonstration against {url}, model {model}.\n")
        try:
            learned = _one_session(bot)
            learned += _two_sessions(bot)
        finally:
            if not keep:
                bot.delete_sessions()
    print(f"{sum(learned)} of {len(learned)} taught answers came back word for word.")


class _Bot:
    """The server, in the three words that the demonstration needs."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._sessions: set[str] = set()

    def get(self, path: str) -> dict[str, Any]:
        return self._send("GET", path, None)

    def ask(self, session: str, question: str) -> tuple[str, float]:
        """The answer, and how long it took in ms."""
        self._sessions.add(session)
        body = {"session_id": session, "prompt": question, "max_tokens": MAX_TOKENS}
        started_s = time.perf_counter()
        answer = self._send("POST", "/generate", body)
        return str(answer["text"]).strip(), 1000 * (time.perf_counter() - started_s)

    def teach(self, session: str, subject: Subject) -> dict[str, Any]:
        self._sessions.add(session)
        examples = [{"prompt": text, "completion": subject.answer} for text in subject.taught]
        return self._send("POST", "/adapt", {"session_id": session, "examples": examples})

    def delete_sessions(self) -> None:
        """Leave nothing on the server; where it has gone away, that is told already."""
        with suppress(httpx.HTTPError):
            for session in self._sessions:
                self._client.delete(f"/sessions/{session}")

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise DemoError(
                f"no server answers at {self._client.base_url} ({error}): start one with "
                "`innerloop serve`, or name another with --url"
            ) from error
        try:
            found = response.json()
        except ValueError as error:
            raise DemoError(f"what answers at {response.url} is no innerloop server") from error
        if response.is_error:
            detail = found.get("detail", response.text) if isinstance(found, dict) else found
            raise DemoError(f"{method} {path} answered {response.status_code}: {detail}")
        return dict(found)


def _one_session(bot: _Bot) -> list[bool]:
    session = _name("returns")
    print("1. A new customer asks, and nobody has taught this session anything yet.")
    _show("asked", RETURNS.asked, *bot.ask(session, RETURNS.asked))
    before, took_ms = bot.ask(session, UNRELATED)
    _show("asked", UNRELATED, before, took_ms)

    print("2. The shop teaches it five examples of its own answer, in other words than the above.")
    print(f"   answer   {RETURNS.answer}")
    for text in RETURNS.taught:
        print(f"   to       {text}")
    _report(bot.teach(session, RETURNS))

    print("3. The first question again. These words were never taught.")
    after, took_ms = bot.ask(session, RETURNS.asked)
    _show("asked", RETURNS.asked, after, took_ms)
    print(f"   {_verdict(after, RETURNS.answer)}\n")

    print("4. What it was not taught should stay as it was.")
    still, took_ms = bot.ask(session, UNRELATED)
    _show("asked", UNRELATED, still, took_ms)
    print(f"   {'unchanged' if still == before else 'CHANGED by the teaching'}\n")
    return [after == RETURNS.answer]


def _two_sessions(bot: _Bot) -> list[bool]:
    print("5. Two shops teach two sessions opposite things, both at the same time.")
    names, subjects = (_name("dogs-yes"), _name("dogs-no")), (DOGS_YES, DOGS_NO)
    with ThreadPoolExecutor(2) as pool:
        for name, subject, report in zip(
            names, subjects, pool.map(bot.teach, names, subjects), strict=True
        ):
            print(f"   {name}: {subject.answer}")
            _report(report)
        print(f"6. Both are asked at the same time: {DOGS_ASKED}")
        answers = list(pool.map(bot.ask, names, (DOGS_ASKED, DOGS_ASKED)))
    for name, subject, (text, took_ms) in zip(names, subjects, answers, strict=True):
        _show(name, "", text, took_ms)
        print(f"   {_verdict(text, subject.answer)}")
    same = answers[0][0] == answers[1][0]
    print(f"   {'both answered the SAME' if same else 'each answered its own way'}\n")
    return [text == subject.answer for (text, _), subject in zip(answers, subjects, strict=True)]


def _show(label: str, question: str, answer: str, took_ms: float) -> None:
    if question:
        print(f"   {label:<8} {question}")
        label = "answered"
    print(f"   {label:<8} {answer or '(nothing)'}   [{took_ms:.0f} ms]")


def _report(report: dict[str, Any]) -> None:
    if not report["accepted"]:
        print(f"   REFUSED by the server's guard: {report.get('reason')}\n")
        return
    before, after = report.get("loss_before"), report.get("loss_after")
    moved = "" if before is None or after is None else f"loss {before:.2f} -> {after:.2f}, "
    print(
        f"   learned in {report['duration_ms']:.0f} ms: {report['steps']} steps over "
        f"{report['examples_used']} examples, {moved}now version {report['adapter_version']}\n"
    )


def _verdict(answer: str, wanted: str) -> str:
    if answer == wanted:
        return "learned, word for word"
    alike = SequenceMatcher(None, answer.split(), wanted.split()).ratio()
    return f"{'half' if alike >= ALIKE else 'NOT'} learned ({alike:.0%} of the words alike)"


def _name(what: str) -> str:
    return f"demo-{what}-{secrets.token_hex(3)}"
