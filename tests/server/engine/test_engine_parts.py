"""The engine's small parts, each alone."""

import asyncio
import logging
from collections.abc import Sequence

import pytest
import torch
from engine_harness import World

from adapters.layer import AddLora, LoraHooks
from adapters.prefix import Prefix
from server.engine import slots as slots_module
from server.engine.base import LayerForm
from server.engine.errors import EngineFailed
from server.engine.isolation import run_together
from server.engine.kernels import compiler, load_kernels
from server.engine.kv import BatchKV, cache_of, causal_masks
from server.engine.outbox import Mail, Outbox
from server.engine.pace import Pace
from server.engine.slots import UNTAUGHT, Slots
from server.engine.status import Rate

CPU = torch.device("cpu")
FORM = LayerForm((2, 4), (2, 3), torch.float32)
TOKEN_BYTES = 2 * (2 * 4 + 2 * 3) * 4


def kv(rows: int = 8, context: int = 1000, budget: int = 10**9) -> BatchKV:
    return BatchKV([FORM, FORM], rows, context, budget, CPU)


def prefix(tokens: int, value: float) -> Prefix:
    keys, values = torch.full((1, 2, tokens, 4), value), torch.full((1, 2, tokens, 3), -value)
    return Prefix(((keys, values), (keys + 1, values - 1)), torch.tensor([tokens]))


def stored(cache: BatchKV, row: int, tokens: int) -> list[float]:
    return [float(keys[row, :, :tokens].mean()) for keys, _ in cache.layers]


def test_kv_keeps_its_rows_when_it_grows_and_shrinks() -> None:
    cache = kv()
    cache.hold(1, 10)
    cache.load(0, prefix(7, 1.0))
    cache.hold(3, 100)
    cache.load(2, prefix(90, 5.0))
    assert stored(cache, 0, 7) == [1.0, 2.0]
    cache.move(2, 1, 90)
    cache.hold(5, 90)
    assert stored(cache, 1, 90) == [5.0, 6.0]
    assert cache.used_bytes == 8 * 128 * TOKEN_BYTES, "rows to a power of two, columns to blocks"
    cache.clear()
    assert cache.used_bytes == 0


def test_kv_that_finds_no_memory_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = kv()
    cache.hold(2, 64)
    real, calls = torch.Tensor.new_zeros, iter(range(100))

    def scarce(self: torch.Tensor, *shape: int) -> torch.Tensor:
        if next(calls) == 2:
            raise torch.OutOfMemoryError
        return real(self, *shape)

    monkeypatch.setattr(torch.Tensor, "new_zeros", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        cache.hold(2, 128)
    assert cache.used_bytes == 0
    assert {tensor.shape[0] for pair in cache.layers for tensor in pair} == {0}
    cache.hold(2, 128)
    assert {tensor.shape[2] for pair in cache.layers for tensor in pair} == {128}


def test_kv_says_what_it_can_hold() -> None:
    cache = kv(rows=6, context=100, budget=4 * 100 * TOKEN_BYTES)
    assert cache.can_hold(4, 90)
    assert not cache.can_hold(5, 90)
    assert cache.can_hold(6, 64), "never more rows than its maximum, so 6 and not 8 are counted"
    cache.hold(4, 100)
    assert cache.used_bytes == 4 * 100 * TOKEN_BYTES, "never more columns than the context"


def test_a_forward_pass_writes_its_rows_only_and_sees_the_past_only() -> None:
    cache = kv(context=64)
    cache.hold(4, 64)
    window = cache.window(1, [3, 5], 2)
    view = cache_of(cache.layers[:1], window)
    assert (len(window.columns), view.get_seq_length(), view.get_max_length()) == (7, 5, 64)
    keys = torch.arange(2 * 2 * 2 * 4, dtype=torch.float32).view(2, 2, 2, 4) + 1
    read, _ = view.update(keys, keys[..., :3], 0)
    assert read.shape == (2, 2, 7, 4)
    torch.testing.assert_close(read[0, :, 3:5], keys[0])
    torch.testing.assert_close(read[1, :, 5:7], keys[1])
    assert cache.layers[0][0].count_nonzero() == keys.numel()
    seen = causal_masks(window, None, torch.float32)[:, 0] == 0
    assert seen[0].tolist() == [[True] * 4 + [False] * 3, [True] * 5 + [False] * 2]
    assert seen[1].tolist() == [[True] * 6 + [False], [True] * 7]
    window = cache.window(0, [62], 4)
    assert window.positions.tolist() == [[62, 63, 63, 63]], "padding stays inside"


def test_slots_pin_what_is_used_and_reuse_the_oldest(world: World) -> None:
    slots = Slots(world.artifact.session_init, 2, CPU)
    names = {name: slots.acquire(name, world.states[name]) for name in ("ann", "bob")}
    assert set(names.values()) == {1, 2}
    assert slots.acquire("cem", world.states["cem"]) is None
    assert slots.acquire("ann", world.states["ann"]) == names["ann"]
    for name in ("ann", "ann", "bob"):
        slots.release(name)
    assert (len(slots), slots.pinned) == (2, 0)
    slots.acquire("bob", world.states["bob"])
    assert slots.acquire("cem", world.states["cem"]) == names["ann"]
    assert slots.state("ann") is None
    assert slots.state("cem") is world.states["cem"]
    for name, tensor in slots.tensors.items():
        assert not tensor[UNTAUGHT].any()
        torch.testing.assert_close(tensor[names["bob"]], world.states["bob"].tensors[name])
        torch.testing.assert_close(tensor[names["ann"]], world.states["cem"].tensors[name])
    assert slots.rows([UNTAUGHT, UNTAUGHT]) is None
    for wanted in ([UNTAUGHT, 2], [2, 1, 2], [1, 1], [2]):
        rows = slots.rows(wanted)
        assert rows is not None
        assert rows.slots is None
        for name, tensor in slots.tensors.items():
            each = rows.tensors[name].repeat_interleave(len(wanted) // len(rows.tensors[name]), 0)
            assert torch.equal(each, tensor[wanted])


@pytest.fixture
def add() -> AddLora:
    """Our operation, which has to be there."""
    if not compiler():
        pytest.skip("no C++ compiler")
    assert load_kernels()
    return torch.ops.innerloop.add_lora


def test_compact_slots_have_the_same_adapters_in_half_the_bytes(world: World, add: AddLora) -> None:
    form = world.artifact.session_init
    plain, half = Slots(form, 2, CPU), Slots(form, 2, CPU, add)
    for slots in (plain, half):
        for name in ("ann", "bob"):
            slots.acquire(name, world.states[name])
            slots.release(name)
    for name, tensor in plain.tensors.items():
        assert 2 * half.tensors[name].nbytes == tensor.nbytes, "beside a factor a rank"
    before = half.rows([1, 2])
    assert before is half.rows([1, 2])
    for slots in (plain, half):
        slots.acquire("cem", world.states["cem"])  # in the place of the oldest
    assert half.rows([UNTAUGHT]) is None
    hooks, inputs = LoraHooks(world.model, world.artifact.spec), torch.tensor([[5, 6, 7]] * 3)
    for wanted in ([UNTAUGHT, 2, 1], [2, 1, 2], [1, 1, 1]):
        rows = half.rows(wanted)
        assert rows is not None
        assert rows.slots is not None
        assert rows.slots.tolist() == wanted
        assert all(rows.tensors[name] is half.tensors[name] for name in form), "where they lie"
        found = []
        for taught in (rows, plain.rows(wanted)):
            with torch.no_grad(), hooks.use(taught):
                found.append(world.model(input_ids=inputs).logits)
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
    hooks.remove()


def test_rows_see_a_slot_that_was_loaded_anew(world: World) -> None:
    slots = Slots(world.artifact.session_init, 2, CPU)
    for name in ("ann", "bob"):
        slots.acquire(name, world.states[name])
        slots.release(name)
    before = slots.rows([1, 2])
    assert before is slots.rows([1, 2]), "copied once"
    slots.acquire("cem", world.states["cem"])
    after = slots.rows([1, 2])
    assert after is not None
    for name, tensor in slots.tensors.items():
        assert torch.equal(after.tensors[name], tensor[[1, 2]])


def test_adapters_too_large_to_be_copied_are_read_by_their_slot(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots_module, "_GATHERED_BYTES", 1)
    rows = Slots(world.artifact.session_init, 2, CPU).rows([UNTAUGHT, 2])
    assert rows is not None
    assert rows.slots is not None
    assert rows.slots.tolist() == [0, 2]


def test_a_slot_that_could_not_be_loaded_is_free_again(world: World) -> None:
    slots = Slots(world.artifact.session_init, 1, CPU)
    for _ in range(3):
        with pytest.raises(KeyError):
            slots.acquire("bad", type(world.states["ann"])(world.artifact.spec, {}, ""))
    assert slots.acquire("ann", world.states["ann"]) == 1


def test_only_the_culprits_fail(caplog: pytest.LogCaptureFixture) -> None:
    runs: list[list[int]] = []
    failed: dict[int, str] = {}

    def work(items: Sequence[int]) -> None:
        runs.append(list(items))
        if 3 in items:
            raise ValueError("three")

    with caplog.at_level(logging.WARNING):
        run_together([1, 2], work, lambda item, error: failed.update({item: str(error)}))
        assert (runs, failed, caplog.records) == ([[1, 2]], {}, [])
        run_together([2, 3, 4], work, lambda item, error: failed.update({item: str(error)}))
    assert runs[1:] == [[2, 3, 4], [2], [3], [4]]
    assert failed == {3: "three"}
    assert "trying each alone" in caplog.text


def test_mail_hands_everything_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop, mail, wakes = asyncio.get_running_loop(), Mail(), []
        real = loop.call_soon_threadsafe
        monkeypatch.setattr(
            loop, "call_soon_threadsafe", lambda *a: wakes.append(a) or real(*a), raising=False
        )
        one: Outbox[int] = Outbox(mail)
        other: Outbox[int] = Outbox(mail)
        for item, outbox in enumerate([one, other, one]):
            outbox.put(item)
        await asyncio.sleep(0)
        assert one._items.empty()
        mail.send()
        assert [await one.get(), await one.get(), await other.get()] == [0, 2, 1]
        assert len(wakes) == 1
        one.put(EngineFailed("broken"))
        mail.send()
        with pytest.raises(EngineFailed, match="broken"):
            await one.get()

    asyncio.run(main())


def test_an_outbox_of_a_closed_loop_counts_as_cancelled() -> None:
    mail = Mail()

    async def make() -> Outbox[int]:
        outbox: Outbox[int] = Outbox(mail)
        assert not outbox.cancelled
        return outbox

    outbox = asyncio.run(make())
    outbox.put(6)
    mail.send()
    assert outbox.cancelled


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def test_learning_takes_its_share_of_every_turn(now_s: list[float]) -> None:
    pace = Pace(learn_share=0.25)

    def serve(took_s: float) -> None:
        with pace.serving():
            now_s[0] += took_s

    assert not pace.learning_is_due, "nothing was answered yet"
    for _ in range(3):
        serve(6.0)
    with pace.learning() as over:
        now_s[0] += 1.9
        assert not over()
        now_s[0] += 0.1
        assert over(), "a quarter of this turn: nothing is saved up of those before"
        now_s[0] += 1.0
    serve(3.0)
    assert not pace.learning_is_due, "it took a second too long before"
    serve(1.0)
    assert pace.learning_is_due


def test_a_turn_that_took_long_is_not_made_longer_by_as_much(now_s: list[float]) -> None:
    pace = Pace(learn_share=0.5)

    def slice_s(served_s: float) -> float:
        with pace.serving():
            now_s[0] += served_s
        with pace.learning() as over:
            began_s = now_s[0]
            while not over():
                now_s[0] += 0.25
        return now_s[0] - began_s

    assert [slice_s(1.0) for _ in range(3)] == [1.0, 1.0, 1.0]
    assert slice_s(11.0) == 2.0, "once is not usual"
    assert max(slice_s(11.0) for _ in range(60)) == pytest.approx(11.0, rel=0.05)
    assert slice_s(1.0) <= 1.0


def test_the_rate_is_that_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    rate = Rate()
    for second in range(1, 31):
        now_s[0] += 1.0
        rate.mark(second * 7)
    assert rate.per_s(30 * 7) == pytest.approx(7.0)
    now_s[0] += 60.0
    assert rate.per_s(30 * 7) == 0.0
