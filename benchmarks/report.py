"""Contests as a Markdown table for people and as JSON for programs.

Knows what was measured; knows nothing about how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from benchmarks.contest import Contender, Go, Spread, Standing, ratios, spread
from benchmarks.floor import Rates
from benchmarks.lineup import Floors, Result
from benchmarks.serving import Crowd, Flow, Serving, percentile
from benchmarks.workload import Sizes

Facts = Mapping[str, str | int | float | None]

ADAPT_HEAD = ("sessions", "contender", "seconds", "× PEFT", "× PEFT, CPU time")
DECODE_HEAD = (
    *("sessions", "contender", "tokens/s, whole call", "× peer", "× peer, CPU time"),
    *("tokens/s after the first", "× peer", "same tokens"),
)
FLOOR_HEAD = (
    *("task", "sessions", "contender", "GFLOP", "MB read", "floor, ms", "measured, ms"),
    "× floor",
)
FLOW_HEAD = ("what", "percentile", "quiet, ms", "busy, ms", "ratio")
CROWD_HEAD = (
    *("sessions", "slots", "tokens/s, host memory", "of the first"),
    *("tokens/s, read again", "of the first"),
)
NOTES = (
    "Median (least–greatest) over the rounds. × is how many times as fast, within one round. CPU "
    "time counts this process alone, so other load on the machine moves it less.",
    "Cold: nothing of the prompts is kept. Warm: the engine answered them before, as it has when "
    "feedback comes. Adapting includes the losses before and after, and the guard.",
    "The peer of an adapter's row is PEFT's LoRA with `adapter_names`; of the base's, "
    "transformers' `generate`. PEFT's LoRA acts on the prompt too. PEFT's aLoRA acts where "
    "activated adapters do, from the assistant header on, so it must choose the same tokens.",
)


def markdown(
    model: Facts,
    machine: Facts,
    sizes: Sizes,
    results: Sequence[Result],
    serving: Serving,
    floors: Floors,
) -> str:
    """All tables with what a reader has to know about them."""
    adapt = [row for result in _of(results, "adapt") for row in _rows(result, _adapt_row)]
    decode = [row for result in _of(results, "decode") for row in _rows(result, _decode_row)]
    return "\n".join(
        [
            f"Model: {_facts(model)}.",
            f"Machine: {_facts(machine)}.",
            "",
            f"Adapt: {sizes.examples} examples of {sizes.prompt_tokens} + {sizes.answer_tokens} "
            f"tokens, {sizes.steps} steps.",
            "",
            *_table(ADAPT_HEAD, adapt),
            "",
            f"Decode: prompts of {sizes.prompt_tokens} tokens, {sizes.new_tokens} new ones, "
            "greedy, an adapter of its own for every session.",
            "",
            *_table(DECODE_HEAD, decode),
            "",
            *(f"- {note}" for note in NOTES),
            "",
            _floor_words(floors.rates),
            "",
            *_table(FLOOR_HEAD, floor_rows(results, floors)),
            "",
            f"Text while others teach: {sizes.sessions} sessions stream {sizes.stream_tokens} "
            "tokens each; busy is with another session that learns all the time, as above, its "
            "prompts known.",
            "",
            *_table(FLOW_HEAD, _flow_rows(serving.flow)),
            "",
            "From feedback to the first token of an answer that uses it, in the engine alone: "
            f"{_spread(serving.flow.first_tokens)} s.",
            "",
            f"More sessions than slots: {sizes.sessions} clients, each asking in turn for another "
            f"session's answer of {sizes.new_tokens} tokens.",
            "",
            *_table(CROWD_HEAD, [_crowd_row(crowd, serving.crowds) for crowd in serving.crowds]),
        ]
    )


def _floor_words(rates: Rates) -> str:
    flops, nbytes = (_round(rate / 1e9) for rate in (rates.flops_per_s, rates.bytes_per_s))
    return (
        "How far from the floor: an adapt, and a decode step after the first token. This machine "
        f"multiplies {flops} GFLOP/s and reads as many bytes as the weights at {nbytes} GB/s, at "
        "best."
    )


def floor_rows(results: Sequence[Result], floors: Floors) -> list[list[str]]:
    """Our work beside what the machine could do at best."""
    rows = []
    for result in results:
        task, sessions = result.contest.task, result.contest.sessions
        for name, standing in result.standings.items():
            amount = floors.amounts.get((task, sessions, name))
            if amount is None:
                continue
            goes, floor_s = standing.goes, amount.floor_s(floors.rates)
            measured_s = [g.wall_s if task == "adapt" else sessions / _after(g) for g in goes]
            rows.append(
                [
                    *(task, str(sessions), name),
                    *(_round(amount.flops / 1e9), _round(amount.nbytes / 1e6)),
                    *(_round(floor_s * 1e3), _spread([found * 1e3 for found in measured_s])),
                    _round(median(measured_s) / floor_s),
                ]
            )
    return rows


def _flow_rows(flow: Flow) -> list[list[str]]:
    rows = []
    for name, quiet, busy in (
        ("between two tokens", flow.quiet_gaps, flow.busy_gaps),
        ("an adapt", flow.quiet_adapts, flow.busy_adapts),
    ):
        for share in (50, 99):
            calm, full = percentile(quiet, share), percentile(busy, share)
            figures = [f"{_round(calm * 1e3)}", f"{_round(full * 1e3)}", f"{full / calm:.2f}"]
            rows.append([name, f"p{share}", *figures])
    return rows


def _crowd_row(crowd: Crowd, crowds: Sequence[Crowd]) -> list[str]:
    first = crowds[0]
    return [
        *(str(crowd.sessions), str(crowd.slots), _spread(crowd.kept)),
        f"{median(crowd.kept) / median(first.kept):.2f}",
        _spread(crowd.loaded),
        f"{median(crowd.loaded) / median(first.loaded):.2f}",
    ]


def as_json(
    model: Facts,
    machine: Facts,
    sizes: Sizes,
    results: Sequence[Result],
    serving: Serving,
    floors: Floors,
) -> dict[str, Any]:
    """Everything that was measured, go by go."""
    return {
        "model": dict(model),
        "machine": dict(machine),
        "sizes": asdict(sizes),
        "contests": [
            {
                "task": result.contest.task,
                "sessions": result.contest.sessions,
                "contenders": [_standing(s, result) for s in result.standings.values()],
            }
            for result in results
        ],
        "serving": asdict(serving),
        "rates": asdict(floors.rates),
        "floors": [
            {"task": task, "sessions": sessions, "contender": name} | asdict(amount)
            for (task, sessions, name), amount in floors.amounts.items()
        ],
    }


def agreement(mine: Standing, other: Standing) -> tuple[int, int]:
    """Rows whose tokens are those of the other one, and all rows, over all rounds."""
    pairs = [
        (a, b)
        for go, same in zip(mine.goes, other.goes, strict=True)
        for a, b in zip(go.outcome.answers, same.outcome.answers, strict=True)
    ]
    return sum(a == b for a, b in pairs), len(pairs)


def _standing(standing: Standing, result: Result) -> dict[str, Any]:
    contender, goes = standing.contender, standing.goes
    entry: dict[str, Any] = {
        "name": contender.name,
        "wall_s": [go.wall_s for go in goes],
        "cpu_s": [go.cpu_s for go in goes],
    }
    if result.contest.task == "adapt":
        entry["losses"] = goes[-1].outcome.losses
    else:
        entry["tokens_per_s"] = [_whole(go) for go in goes]
        if goes[0].outcome.decoded_tokens:
            entry["tokens_per_s_after_first"] = [_after(go) for go in goes]
        entry["answers"] = [" ".join(map(str, row)) for row in goes[-1].outcome.answers]
    if contender.against:
        entry["against"] = contender.against
        entry["ratio"] = asdict(ratios(standing, result.standings[contender.against], _wall))
    if contender.same_as:
        same, rows = agreement(standing, result.standings[contender.same_as])
        entry |= {"same_as": contender.same_as, "same_rows": same, "rows": rows}
    return entry


def _adapt_row(standing: Standing, result: Result) -> list[str]:
    return [_spread([go.wall_s for go in standing.goes]), *_ratios(standing, result)]


def _decode_row(standing: Standing, result: Result) -> list[str]:
    others = result.standings.get(standing.contender.against or "")
    after = ["", ""]  # of those who do not say when their tokens came
    if standing.goes[0].outcome.decoded_tokens:
        faster = _show(ratios(standing, others, lambda go: 1 / _after(go))) if others else "1"
        after = [_spread([_after(go) for go in standing.goes]), faster]
    return [
        _spread([_whole(go) for go in standing.goes]),
        *_ratios(standing, result),
        *after,
        _same(standing.contender, result),
    ]


def _ratios(standing: Standing, result: Result) -> list[str]:
    others = result.standings.get(standing.contender.against or "")
    if others is None:
        return ["1", "1"]
    cpu = ratios(standing, others, lambda go: go.cpu_s)
    return [_show(ratios(standing, others, _wall)), _show(cpu)]


def _same(contender: Contender, result: Result) -> str:
    if contender.same_as is None:
        return ""
    standings = result.standings
    same, rows = agreement(standings[contender.name], standings[contender.same_as])
    return f"{same} of {rows}"


def _wall(go: Go) -> float:
    return go.wall_s


def _whole(go: Go) -> float:
    return sum(map(len, go.outcome.answers)) / go.wall_s


def _after(go: Go) -> float:
    return go.outcome.decoded_tokens / go.outcome.decoding_s


def _of(results: Sequence[Result], task: str) -> list[Result]:
    return [result for result in results if result.contest.task == task]


def _rows(result: Result, row: Callable[[Standing, Result], list[str]]) -> list[list[str]]:
    sessions = str(result.contest.sessions)
    return [[sessions, s.contender.name, *row(s, result)] for s in result.standings.values()]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _spread(values: Sequence[float]) -> str:
    return _show(spread(values))


def _show(value: Spread) -> str:
    return f"{_round(value.median)} ({_round(value.least)}–{_round(value.greatest)})"


def _round(value: float) -> str:
    """Three digits that count, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _facts(facts: Facts) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items())
