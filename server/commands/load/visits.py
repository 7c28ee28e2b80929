"""One visit to a session over HTTP, timed from when it was due."""

import random
from collections.abc import Sequence
from itertools import pairwise
from time import monotonic

from innerloop import Adapted, Answer, Example, calls
from innerloop.calls import Call
from server.commands.load.http import Failed, Http, failing
from server.commands.load.plan import Arrival, Kind, Load
from server.commands.load.tally import Measure, Tally, Visit

STALE = "stale answer"
"""An answer by a version older than one that was acknowledged before it was asked for."""


class Visitors:
    """Everybody who visits; remembers the chats of the sessions."""

    def __init__(
        self,
        http: Http,
        load: Load,
        examples: Sequence[Example],
        prefix: str,
        begun: float,
    ) -> None:
        """``begun`` is what `time.monotonic` said at the beginning of the load."""
        self._http = http
        self._load = load
        self._examples = examples
        self._prefix = prefix
        self._begun = begun
        self._chats: dict[int, list[dict[str, str]]] = {}
        self._tally = Tally(load)
        self._warming = Tally(load)
        self.used: set[str] = set()

    @property
    def tally(self) -> Tally:
        """What counts."""
        return self._tally

    async def visit(self, arrival: Arrival) -> None:
        """Do what ``arrival`` came for. Failures are counted, not raised."""
        due = self._begun + arrival.due_s
        tally = self._warming if arrival.due_s < self._load.warmup_s else self._tally
        visit = Visit(arrival.due_s, arrival.kind, arrival.session, late_s=monotonic() - due)
        tally.visits.append(visit)
        tally.took(Measure.SENT_LATE, visit.late_s)
        deed = {Kind.ASK: self._ask, Kind.ADAPT: self._adapt, Kind.FEEDBACK: self._correct}
        session = f"{self._prefix}-{arrival.session}"
        self.used.add(session)
        try:
            await deed[arrival.kind](arrival, session, visit, tally, random.Random(arrival.draw))
            visit.whole_s = monotonic() - due
        except Failed as failure:
            tally.failed(visit, failure.deed, failure.kind)

    async def _ask(
        self, arrival: Arrival, session: str, visit: Visit, tally: Tally, draw: random.Random
    ) -> None:
        chat = self._chats.get(arrival.session, [])
        if len(chat) >= 2 * self._load.turns:
            chat = []
        asked = {"role": "user", "content": _question(draw.choice(self._examples))}
        answer = await self._answer(session, [*chat, asked], visit, tally)
        said = {"role": "assistant", "content": answer.text}
        self._chats[arrival.session] = [*chat, asked, *([said] if answer.text else [])]
        if not answer.text:  # two turns of one speaker are no chat
            del self._chats[arrival.session]

    async def _adapt(
        self, arrival: Arrival, session: str, visit: Visit, tally: Tally, draw: random.Random
    ) -> None:
        due = self._begun + arrival.due_s
        count = min(self._load.examples, len(self._examples))
        lessons = draw.sample(list(self._examples), count)
        taught = await self._learn("adapt", calls.adapt(session, lessons, None, False, None))
        tally.took(Measure.ADAPT, monotonic() - due)
        await self._use(session, _question(lessons[0]), due, taught, visit, tally)

    async def _correct(
        self, arrival: Arrival, session: str, visit: Visit, tally: Tally, draw: random.Random
    ) -> None:
        example = draw.choice(self._examples)
        turns = [{"role": "user", "content": _question(example)}]
        answer = await self._answer(session, turns, visit, tally)
        sent = monotonic()
        call = calls.feedback(answer, None, example.completion, None)
        taught = await self._learn("feedback", call)
        tally.took(Measure.FEEDBACK, monotonic() - sent)
        await self._use(session, _question(example), sent, taught, visit, tally)

    async def _use(
        self, session: str, prompt: str, since: float, taught: Adapted, visit: Visit, tally: Tally
    ) -> None:
        """Ask for what was taught ``since``: the time of the first text that may use it."""
        tally.refused_lessons += not taught.accepted
        call = calls.generate(session, prompt, self._load.stream, self._options())
        answer, times = await self._send(call)
        visit.tokens += answer.usage["completion_tokens"]
        if answer.adapter_version < taught.adapter_version:
            raise Failed("generate", STALE)
        if taught.accepted:
            tally.took(Measure.TAUGHT_FIRST_TOKEN, times[0] - since)

    async def _answer(
        self, session: str, turns: list[dict[str, str]], visit: Visit, tally: Tally
    ) -> Answer:
        """The answer that a visitor came for."""
        call = calls.generate(session, turns, self._load.stream, self._options())
        answer, times = await self._send(call)
        visit.tokens += answer.usage["completion_tokens"]
        due = self._begun + visit.due_s
        visit.first_s = times[0] - due
        tally.took(Measure.WHOLE_ANSWER, times[-1] - due)
        if self._load.stream:
            tally.took(Measure.FIRST_TOKEN, visit.first_s)
            for before, after in pairwise(times[:-1]):
                tally.took(Measure.TOKEN_GAP, after - before)
        return answer

    async def _send(self, call: Call) -> tuple[Answer, list[float]]:
        """An answer, and when each piece of it came, its end last; one time where it is whole."""
        times: list[float] = []
        events = calls.Events()
        with failing("generate"):
            if not self._load.stream:
                return Answer.read(await self._http.send(call)), [monotonic()]
            async for piece in self._http.stream(call):
                times.extend(monotonic() for _ in events.take(piece))
            return events.end(), [*times, monotonic()]

    async def _learn(self, deed: str, call: Call) -> Adapted:
        with failing(deed):
            return Adapted.read(await self._http.send(call))

    def _options(self) -> dict[str, int]:
        return {"max_tokens": self._load.max_tokens}


def _question(example: Example) -> str:
    prompt = example.prompt
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]
