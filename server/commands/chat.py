"""`innerloop chat`: a conversation in the terminal with a session that learns from it."""

import argparse
import importlib.util
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from innerloop import Adapted, Answer, Client, InnerloopError, Session, Unavailable
from innerloop.types import Prompt
from server.commands import DONE, add_connection, add_json, whole_number
from server.commands.connection import connected, explained
from server.commands.output import emit, lesson_line, note, shown, when

DESCRIPTION = (
    "Talk to a session, and teach it while you do. Ctrl-C stops a reply, Ctrl-D leaves. Commands "
    "begin with a slash; /help lists them. Without a terminal, every line of standard input is one."
)
EXAMPLES = """\
  innerloop chat
  innerloop chat --session shop-1 --max-tokens 60
  printf '/teach do you ship? => By balloon.\\nand abroad?\\n' | innerloop chat -s shop-1 --json"""

HELP = """\
/teach QUESTION => ANSWER   teach it an answer
/good, /bad                 rate the last answer
/correct ANSWER             say what the last answer should have been
/items                      what it was told
/forget [NUMBER]            forget an item: the newest that counts, or the one named
/session [ID]               where this session stands, or go to another
/clear                      begin a new conversation, with --earlier
/quit                       leave, as Ctrl-D does"""
ARROW = "=>"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whom to talk to, and how."""
    parser.add_argument("-s", "--session", metavar="ID", help="default: a new one")
    parser.add_argument("--max-tokens", type=whole_number(1), metavar="N", help="of each answer")
    parser.add_argument("--temperature", type=float, metavar="T", help="0, the default, is greedy")
    parser.add_argument("--system", metavar="TEXT", help="a system turn before everything")
    parser.add_argument("--earlier", action="store_true", help="send the earlier turns along")
    add_json(parser)
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    """Read lines until there are none."""
    session_id = args.session or f"chat-{secrets.token_hex(4)}"
    with connected(args) as client:
        chat = Chat(client, session_id, args)
        note(f"session {session_id}; /help lists the commands, Ctrl-D leaves")
        return chat.run()


class Chat:
    """A session, the conversation so far, and its last answer."""

    def __init__(self, client: Client, session_id: str, args: argparse.Namespace) -> None:
        self._client = client
        self._session = Session(client, session_id)
        self._args = args
        self._tty = sys.stdin.isatty()
        self._turns: list[dict[str, str]] = []
        self._answer: Answer | None = None
        self._code = DONE
        self._deeds: Mapping[str, Callable[[str], None]] = {
            "teach": self._teach,
            "good": lambda text: self._rate(1, text),
            "bad": lambda text: self._rate(-1, text),
            "correct": self._correct,
            "items": self._items,
            "forget": self._forget,
            "session": self._look,
            "clear": lambda _: self._turns.clear(),
            "help": lambda _: note(HELP),
        }

    def run(self) -> int:
        """Take line after line; returns the exit code, that of the last thing that failed."""
        if self._tty and importlib.util.find_spec("readline"):
            import readline  # noqa: F401  (importing it gives input() its history)
        while True:
            try:
                line = self._line()
            except KeyboardInterrupt:
                if not self._tty:
                    raise
                note("\n(Ctrl-D leaves)")
                continue
            if line is None or line in ("/quit", "/exit"):
                return self._code
            try:
                self._take(line)
            except KeyboardInterrupt:
                if not self._tty:
                    raise
                note("\n(stopped)")
            except InnerloopError as error:
                self._failed(error)

    def _line(self) -> str | None:
        if self._tty:
            try:
                return input("> ").strip()
            except EOFError:
                note("")
                return None
        line = sys.stdin.readline()
        return line.strip() if line else None

    def _take(self, line: str) -> None:
        if not line.startswith("/"):
            if line:
                self._ask(line)
            return
        name, _, rest = line[1:].partition(" ")
        deed = self._deeds.get(name)
        if deed is None:
            self._wrong(f"there is no /{name}: /help lists the commands")
        else:
            deed(rest.strip())

    def _ask(self, question: str) -> None:
        self._answer = None  # a rating must not be about an older one, should this be stopped
        stream = self._session.stream(self._prompt(question), **self._options())
        pieces = []
        try:
            for text in stream:
                pieces.append(text)
                if not self._args.json:
                    print(shown(text), end="", flush=True)
        finally:
            if pieces and not self._args.json:
                print(flush=True)
        self._answer = stream.answer
        if self._args.json:
            emit({"answer": asdict(self._answer)})
        if self._args.earlier:
            self._turns += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": self._answer.text},
            ]

    def _prompt(self, question: str) -> Prompt:
        system = [{"role": "system", "content": self._args.system}] if self._args.system else []
        turns = [*system, *self._turns, {"role": "user", "content": question}]
        return question if len(turns) == 1 else turns

    def _options(self) -> dict[str, Any]:
        named = {name: getattr(self._args, name) for name in ("max_tokens", "temperature")}
        return {name: value for name, value in named.items() if value is not None}

    def _teach(self, text: str) -> None:
        question, arrow, answer = (part.strip() for part in text.partition(ARROW))
        if not (question and arrow and answer):
            self._wrong(f"/teach QUESTION {ARROW} ANSWER")
            return
        self._learned(self._session.adapt([(question, answer)]))

    def _rate(self, rating: Any, comment: str) -> None:
        if self._answer is None:
            self._wrong("there is no answer to rate yet")
            return
        self._learned(self._session.rate(self._answer, rating, comment=comment or None))

    def _correct(self, text: str) -> None:
        if self._answer is None:
            self._wrong("there is no answer to correct yet")
        elif not text:
            self._wrong("/correct ANSWER: what should it have said?")
        else:
            self._learned(self._session.correct(self._answer, text))

    def _items(self, _: str) -> None:
        for item in self._session.items():
            if self._args.json:
                emit({"item": asdict(item)})
                continue
            asked = item.messages[-1]["content"] if item.messages else "(erased)"
            line = (
                f"{item.id:>4}  {item.kind:<13} {item.status:<10} {asked} {ARROW} {item.completion}"
            )
            print(shown(line))

    def _forget(self, text: str) -> None:
        if text and not text.isdecimal():
            self._wrong("/forget [NUMBER]: /items has the numbers")
            return
        number = int(text) if text else None
        if number is None:
            counting = [i.id for i in self._session.items() if i.status in ("applied", "pending")]
            if not counting:
                self._wrong("there is nothing to forget")
                return
            number = counting[-1]
        self._session.forget(number)
        if self._args.json:
            emit({"forgotten": number})
        else:
            print(f"item {number} is forgotten, as if it had never come")

    def _look(self, text: str) -> None:
        if text:
            self._session = Session(self._client, text.split()[0])
            self._turns.clear()
            self._answer = None
            note(f"session {self._session.id}")
            return
        info = self._session.info()
        if self._args.json:
            emit({"session": asdict(info)})
            return
        print(
            f"{info.session_id}: version {info.adapter_version}, {info.applied_items} of "
            f"{info.items} items applied, {info.pending_items} waiting, "
            f"updated {when(info.updated_at)}"
        )

    def _learned(self, outcome: Adapted) -> None:
        if self._args.json:
            emit({"adapted": asdict(outcome)})
        else:
            print(lesson_line(asdict(outcome)))

    def _failed(self, error: InnerloopError) -> None:
        told = explained(error, self._args.url)
        self._wrong(str(told), told.code)
        if isinstance(error, Unavailable) and not self._tty:
            raise told from error  # whoever pipes lines in wants none of them lost

    def _wrong(self, message: str, code: int = 1) -> None:
        if not self._tty:
            self._code = code
        note(f"innerloop: {message}")
