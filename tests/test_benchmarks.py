"""`python -m benchmarks` end to end at its smallest; nothing here looks at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import lineup
from benchmarks.__main__ import main

# PEFT 0.21 asks transformers 5.23 by a name that the latter deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

SMALLEST = (
    *("--shape", "tiny", "--sessions", "2", "--examples", "2", "--steps", "2", "--rounds", "1"),
    *("--prompt-tokens", "12", "--answer-tokens", "3", "--new-tokens", "4", "--threads", "1"),
    *("--stream-tokens", "6"),
)
PREFIXED = {lineup.COLD, lineup.WARM}
BASES = {lineup.BASE_COLD, lineup.BASE_WARM, lineup.BATCHED, lineup.PLAIN}
Contenders = dict[str, dict[str, Any]]


def run(folder: Path, *arguments: str) -> dict[tuple[str, int], Contenders]:
    """Contenders by name, by task and number of sessions."""
    file = folder / "figures.json"
    assert main([*SMALLEST, *arguments, "--json", str(file)]) == 0
    figures = json.loads(file.read_text(encoding="utf-8"))
    check_serving(figures["serving"])
    check_floors(figures)
    return {
        (contest["task"], contest["sessions"]): {one["name"]: one for one in contest["contenders"]}
        for contest in figures["contests"]
    }


@pytest.mark.parametrize("scope", ["activated", "full"])
def test_every_contender_has_its_row_and_they_agree_where_they_must(
    scope: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contests = run(tmp_path, "--scope", scope)
    ours = PREFIXED if scope == "activated" else {lineup.FULL}
    alora = {lineup.ACTIVATED} if scope == "activated" else set()
    named = {lineup.NAMED} | alora | ours | BASES
    assert {key: set(contenders) for key, contenders in contests.items()} == {
        ("adapt", 1): ours | {lineup.TRAINED},
        ("adapt", 2): ours | {lineup.TRAINED},
        ("decode", 1): named | {lineup.SET},
        ("decode", 2): named,
    }
    table = capsys.readouterr().out
    for (task, sessions), contenders in contests.items():
        for name, figures in contenders.items():
            assert f"| {sessions} | {name} |" in table
            assert figures.get("same_rows") == figures.get("rows")
            if task == "decode" and "PEFT" not in name and name != lineup.PLAIN:
                assert figures["rows"] == sessions
    check_answers(contests["decode", 2], ours, alora or {lineup.NAMED})
    check_losses(contests["adapt", 2], ours)


def check_serving(serving: dict[str, Any]) -> None:
    """Every gap of every stream was seen, something was learned meanwhile, nobody was left out."""
    flow = serving["flow"]
    assert len(flow["quiet_gaps"]) == 2 * 5
    assert len(flow["busy_gaps"]) % (2 * 5) == 0
    assert len(flow["quiet_adapts"]) == 3 <= len(flow["busy_adapts"])
    assert len(flow["first_tokens"]) == 1
    crowds = serving["crowds"]
    assert [crowd["sessions"] for crowd in crowds] == [1, 2, 4, 8]
    assert all(rate > 0 for crowd in crowds for rate in crowd["kept"] + crowd["loaded"])


def check_floors(figures: dict[str, Any]) -> None:
    """Twice the sessions compute twice as much and read the weights once; adapters cost some."""
    floors = {(one["task"], one["sessions"], one["contender"]): one for one in figures["floors"]}
    assert all(rate > 0 for rate in figures["rates"].values())
    weights = 4 * 2_557_632 - 4 * 192 * (2 * 4 + 1)  # all but the norms
    for task, name in {(task, name) for task, _, name in floors}:
        one, many = floors[task, 1, name], floors[task, 2, name]
        assert many["flops"] == pytest.approx(2 * one["flops"], rel=1e-3)
        passes = 1 if task == "decode" else 2 + 2 * 2 + (name == lineup.COLD)
        assert one["nbytes"] > passes * weights
        assert many["nbytes"] - one["nbytes"] == pytest.approx(one["nbytes"] - passes * weights)
    known = floors.get(("adapt", 2, lineup.WARM))
    assert known is None or known["flops"] < floors["adapt", 2, lineup.COLD]["flops"]
    taught = lineup.WARM if known is not None else lineup.FULL
    for what in ("flops", "nbytes"):
        with_adapters, base = floors["decode", 2, taught], floors["decode", 2, lineup.BASE_WARM]
        assert with_adapters[what] > base[what]


def check_answers(contenders: Contenders, ours: set[str], peers: set[str]) -> None:
    """Same adapter, same tokens, all of them; and the adapters do change the answers."""
    taught = {tuple(contenders[name]["answers"]) for name in ours | peers}
    plain = {tuple(contenders[name]["answers"]) for name in BASES}
    assert len(taught) == len(plain) == 1
    assert {len(row.split()) for rows in taught | plain for row in rows} == {4}
    assert all(a != b for a, b in zip(taught.pop(), plain.pop(), strict=True))


def check_losses(contenders: Contenders, ours: set[str]) -> None:
    """B is zero at the start, so all begin at the base's loss on the same tokens, and learn."""
    for name in ours:
        first, last = contenders[name]["losses"]
        start, end = contenders[lineup.TRAINED]["losses"]
        assert first == pytest.approx(start, abs=1e-4)
        assert last < first
        assert end < start


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--prompt-tokens", "600"], "lower --prompt-tokens"),
        (["--prompt-tokens", "2"], "raise --prompt-tokens"),
        (["--answer-tokens", "1", "--new-tokens", "2"], "--new-tokens must be at least 3"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALLEST, *arguments]) == 2
    assert advice in capsys.readouterr().err


def test_a_missing_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err
