"""`python -m benchmarks.fleet`: what capacity says, and a simulation that knows queues."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fleet import simulate as command
from benchmarks.fleet.__main__ import main
from benchmarks.fleet.constants import CONSTANTS
from benchmarks.fleet.model import Constants, Demand, Prices, arrivals_per_cpu_s, plan, work_s
from benchmarks.fleet.simulation import POLICIES, Fleet, simulate
from benchmarks.fleet.soak import memory

ROUND = Constants(ask_s=0.1, lesson_s=1.0, session_bytes=1e6, lesson_bytes=5e5)
ASKS = Demand(rate=1, sessions=1000, adapts=0, feedback=0)


def test_a_plan_by_hand() -> None:
    demand = Demand(rate=10, sessions=100, adapts=0.1, feedback=0.1, lessons=2, spare=1)
    assert work_s(demand, ROUND) == pytest.approx(0.9 * 0.1 + 0.2 * 1.0)
    assert arrivals_per_cpu_s(demand, ROUND) == pytest.approx(1 / 0.29)
    found = plan(demand, ROUND, Prices(replica_per_hour=1, redis_gb_per_month=10))
    assert found.replicas == 5 + 1  # 2.9 engines, 0.7 of each planned with
    assert found.utilisation == pytest.approx(2.9 / 6)
    assert found.redis_bytes == 100 * 1.5e6
    assert found.cost_per_month == pytest.approx(6 * 730 + 1.5)
    many = plan(replace(demand, lessons=50), ROUND, Prices())
    assert many.redis_bytes == 100 * (1e6 + 3 * 5e5), "older adapters are not kept"


def test_capacity_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["capacity", "--sessions", "100000", "--rate", "50"]
    assert main(asked) == 0
    assert "replicas" in capsys.readouterr().out
    assert main([*asked, "--json"]) == 0
    usual = json.loads(capsys.readouterr().out)["replicas"]
    fast = ["--ask-s", "0.0001", "--lesson-s", "0.001"]
    assert main([*asked, *fast, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["replicas"] == 2 < usual
    with pytest.raises(SystemExit):
        main(["capacity", "--sessions", "1"])
    with pytest.raises(SystemExit, match="--rate"):
        main(["capacity", "--sessions", "1", "--rate", "0"])


def one(policy: str = "consistent", replicas: int = 1) -> Fleet:
    return Fleet(replicas, policy, seconds=600 / replicas, warmup_s=10)


def test_one_replica_waits_as_the_theory_says() -> None:
    """M/D/1: the mean wait is rho / 2(1 - rho) services; the median of all answers is below it."""
    for rho in (0.3, 0.8):
        found = simulate(one(), replace(ASKS, rate=rho / ROUND.ask_s), ROUND)
        assert found["engine_mean"] == pytest.approx(rho, rel=0.07)
        assert found["answer_mean_s"] == pytest.approx(0.1 + 0.1 * rho / (2 * (1 - rho)), rel=0.15)
    full = simulate(one(), replace(ASKS, rate=1.5 / ROUND.ask_s), ROUND)
    assert full["engine_mean"] == pytest.approx(1.0, rel=0.01)
    assert full["done_share"] < 0.75


def test_lessons_have_half_of_a_full_engine() -> None:
    teaching = replace(ASKS, rate=6.0, adapts=0.3)
    found = simulate(one(), teaching, ROUND)
    assert found["engine_mean"] == pytest.approx(1.0, rel=0.01)
    assert found["answer_p99_s"] < 10 < found["lesson_p50_s"], "answers are held up, not drowned"


def test_a_session_that_is_hot_needs_a_policy_that_knows_load() -> None:
    demand = replace(ASKS, rate=8 * 0.7 / ROUND.ask_s, sessions=10_000)
    fleets = {name: replace(one(name, replicas=8), zipf=1.4) for name in POLICIES}
    found = {name: simulate(fleet, demand, ROUND) for name, fleet in fleets.items()}
    assert found["consistent"]["engine_busiest"] > 0.99
    assert found["consistent"]["done_share"] < 0.95
    for bounded in ("bounded", "bounded, 4 allowed"):
        assert found[bounded]["done_share"] > 0.99
        assert found[bounded]["answer_p99_s"] < found["random"]["answer_p99_s"]
    kept = [found[p]["cold_share"] for p in ("consistent", "bounded, 4 allowed", "random")]
    assert kept == sorted(kept)


def test_a_lost_replica_costs_no_visit() -> None:
    demand = replace(ASKS, rate=4 * 0.5 / ROUND.ask_s)
    for policy in POLICIES:
        fleet = replace(one(policy, replicas=4), zipf=0.0)
        calm, lost = (simulate(replace(fleet, lose_at_s=at), demand, ROUND) for at in (None, 80.0))
        assert lost["resent"] >= 0
        assert lost["done_share"] > 0.99
        assert lost["answer_p99_s"] > calm["answer_p99_s"]


def test_equal_seeds_simulate_equally() -> None:
    demand = Demand(rate=20, sessions=1000)
    fleet = Fleet(4, "bounded", seconds=20, warmup_s=5)
    assert simulate(fleet, demand, CONSTANTS) == simulate(fleet, demand, CONSTANTS)
    assert simulate(replace(fleet, seed=1), demand, CONSTANTS) != simulate(fleet, demand, CONSTANTS)


def test_the_command_writes_table_and_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "ZIPFS", (1.0,))
    monkeypatch.setattr(command, "MIDDLE", 4)
    small = ["--sessions", "1000", "--sizes", "2", "4", "--seconds", "3", "--save", str(tmp_path)]
    assert main(["simulate", *small]) == 0
    assert capsys.readouterr().out.count("| bounded |") == 3
    assert "<svg" in (tmp_path / "simulation.svg").read_text()
    assert len(json.loads((tmp_path / "simulation.json").read_text())["rows"]) == 3 * len(POLICIES)


def test_memory_that_grows_is_told() -> None:
    steady = [(float(t), 10**9, t / 10, 1.0) for t in range(0, 3600, 5)]
    assert memory(steady)["rss_slope_mb_per_hour"] == pytest.approx(0, abs=1e-3)
    leaking = [(t, rss + int(t * 1e4), cpu, load) for t, rss, cpu, load in steady]
    assert memory(leaking)["rss_slope_mb_per_hour"] == pytest.approx(36, rel=0.01)
    assert memory(leaking)["cpu_share"] == pytest.approx(0.1)
