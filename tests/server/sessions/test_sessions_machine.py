"""The log against a plain-Python model: whatever the order of calls, both say the same."""

import asyncio
import secrets
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from state_machines import run_machine

from server.sessions import (
    Kind,
    NewItem,
    Pointer,
    SessionStore,
    VersionConflict,
    VersionNotFound,
    VersionRecord,
)

HISTORY = 4
STRENGTH = {"demonstration": 3, "correction": 3, "preference": 2, "rating": 1}

prompts = st.sampled_from(["", "p", "q"])
told = st.one_of(
    st.tuples(st.sampled_from(["demonstration", "correction", "preference"]), st.just("")),
    # The first is from before ratings said what they are of.
    st.tuples(st.just("rating"), st.sampled_from(["", "+x", "-x", "+y", "-y"])),
)
ids = st.integers(1, 12)


@dataclass
class Entry:
    """An item of the model: `own` is what it would be if nobody superseded it."""

    kind: Kind
    prompt: str
    rated: str = ""
    own: str = "pending"  # pending, refused, undone or forgotten

    def supersedes(self, earlier: "Entry") -> bool:
        if self.rated.startswith("-"):
            return earlier.rated[1:] == self.rated[1:]
        return STRENGTH[self.kind] >= STRENGTH[earlier.kind]


@dataclass
class Model:
    """Statuses are worked out from the whole log each time, nothing is carried along."""

    entries: dict[int, Entry] = field(default_factory=dict)
    versions: dict[int, list[int]] = field(default_factory=dict)
    active: int = 0
    last: int = 0

    def superseded(self, number: int) -> bool:
        mine = self.entries[number]
        return bool(mine.prompt) and any(
            other > number
            and entry.prompt == mine.prompt
            and entry.own == "pending"
            and entry.supersedes(mine)
            and not self.superseded(other)
            for other, entry in self.entries.items()
        )

    def status(self, number: int) -> str:
        own = self.entries[number].own
        if own == "undone":
            return "refused"
        if own != "pending":
            return own
        if self.superseded(number):
            return "superseded"
        return "applied" if number in self.versions.get(self.active, []) else "pending"

    def derivable(self) -> list[int]:
        return [n for n in self.entries if self.status(n) in ("pending", "applied")]

    def rollback(self, target: int) -> None:
        contained = self.versions.get(target, [])
        for number, entry in self.entries.items():
            if number in contained or entry.own == "undone":
                entry.own = "pending"
        for number in sorted(self.entries, reverse=True):
            entry = self.entries[number]
            if entry.own == "pending" and number not in contained and not self.superseded(number):
                entry.own = "undone"
        self.active = target
        self.purge()

    def purge(self) -> None:
        for number in list(self.versions):
            if number != self.active and any(
                self.entries[item].own == "forgotten" for item in self.versions[number]
            ):
                del self.versions[number]


class LogMachine(RuleBasedStateMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = self.runner.run(
            SessionStore.open(
                self.url, namespace=f"machine-{secrets.token_hex(4)}", history_versions=HISTORY
            )
        )
        self.model = Model()
        self.pointer = Pointer("t", "s")

    def teardown(self) -> None:
        self.runner.run(self.store.delete("t", "s"))
        self.runner.run(self.store.aclose())
        self.runner.close()

    @rule(new=st.lists(st.tuples(told, prompts), min_size=1, max_size=3))
    def append(self, new: list[tuple[tuple[Kind, str], str]]) -> None:
        items = [NewItem(kind, {"k": kind}, p, rated) for (kind, rated), p in new]
        result = self.runner.run(self.store.append("t", "s", items))
        for number, item in zip(result.item_ids, items, strict=True):
            assert number == len(self.model.entries) + 1
            self.model.entries[number] = Entry(item.kind, item.prompt_key, item.rated)

    @precondition(lambda self: self.model.entries)
    @rule()
    def adapt(self) -> None:
        items = self.model.derivable()
        number = self.runner.run(
            self.store.promote(self.pointer, b"x", VersionRecord("i", tuple(items), "r", "b"))
        )
        self.model.last += 1
        assert number == self.model.last
        self.model.versions[number] = items
        self.model.active = number
        self.model.purge()
        for old in sorted(self.model.versions)[:-HISTORY]:
            del self.model.versions[old]

    @precondition(lambda self: self.pointer.version > 0)
    @rule()
    def adapt_late(self) -> None:
        """A candidate under a pointer of before changes nothing; the invariant sees to that."""
        stale = Pointer("t", "s", exists=True, incarnation=self.pointer.incarnation, version=0)
        try:
            self.runner.run(self.store.promote(stale, b"x", VersionRecord("i", (), "r", "b")))
        except VersionConflict:
            return
        raise AssertionError("a stale candidate was promoted")

    @precondition(lambda self: self.model.entries)
    @rule(numbers=st.sets(ids, max_size=3))
    def refuse(self, numbers: set[int]) -> None:
        pending = [n for n in self.model.entries if self.model.status(n) == "pending"]
        known = sorted(numbers & set(pending))
        assert self.runner.run(self.store.refuse("t", "s", known, "no")) == tuple(known)
        for number in known:
            self.model.entries[number].own = "refused"

    @precondition(lambda self: self.model.entries)
    @rule(number=ids)
    def forget(self, number: int) -> None:
        if number not in self.model.entries:
            return
        tainted = {n for n, items in self.model.versions.items() if number in items}
        result = self.runner.run(self.store.forget("t", "s", number))
        assert set(result.versions) >= tainted
        self.model.entries[number] = Entry("rating", "", own="forgotten")
        self.model.purge()

    @precondition(lambda self: self.model.entries)
    @rule(to_version=st.integers(0, 6))
    def rollback(self, to_version: int) -> None:
        items = self.model.versions.get(to_version, [])
        known = to_version == 0 or to_version in self.model.versions
        try:
            self.runner.run(self.store.rollback("t", "s", to_version))
        except VersionNotFound:
            assert not known or any(self.model.entries[n].own == "forgotten" for n in items)
        else:
            assert known
            self.model.rollback(to_version)

    @invariant()
    def both_say_the_same(self) -> None:
        read = self.runner.run(self.store.derivation("t", "s"))
        self.pointer = read.pointer
        if not self.model.entries:
            assert not self.pointer.exists
            return
        items = self.runner.run(self.store.items("t", "s"))
        expected = {n: self.model.status(n) for n in self.model.entries}
        assert {item.id: item.status for item in items} == expected
        assert [item.id for item in read.items] == self.model.derivable()
        assert self.pointer.version == self.model.active
        assert self.pointer.pending == list(expected.values()).count("pending")
        assert self.pointer.applied == list(expected.values()).count("applied")
        assert self.pointer.unpurged == any(
            expected[n] == "forgotten" for n in self.model.versions.get(self.model.active, [])
        )
        versions = self.runner.run(self.store.versions("t", "s"))
        assert {v.number: list(v.record.item_ids) for v in versions} == self.model.versions
        for version in versions:
            assert self.runner.run(self.store.snapshot("t", "s", version.number)) == b"x"


def test_log_agrees_with_a_model(redis_url: str) -> None:
    class Machine(LogMachine):
        url = redis_url

    run_machine(Machine, examples=25, steps=15)
