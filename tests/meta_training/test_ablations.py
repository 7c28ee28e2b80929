"""``python -m benchmarks.ablations`` on a model of seconds: what it trains, judges and resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from mini_run import RECIPE
from test_elsewhere_judged import small_gate
from tiny_encoder import save_encoder

from benchmarks import ablations, as_served
from meta_training.train import OuterLoop

NAMES = ("multi-task", "ANIL", "no outer loop")


def test_variants_are_trained_judged_and_not_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    monkeypatch.setattr(ablations, "CELLS", ablations.CELLS[:2])
    monkeypatch.setattr("meta_training.evaluation.methods.TUNING_TASKS", 1)
    monkeypatch.setattr("meta_training.evaluation.methods.LEARNING_RATES", (1e-2,))
    taken: list[int] = []
    run = OuterLoop.run
    monkeypatch.setattr(OuterLoop, "run", lambda self: taken.append(self._part.steps) or run(self))
    arguments = ["--data", data, "--out", tmp_path / "out", "--recipe", recipe]
    arguments += ["--cpu-s", 0.5, "--seeds", 1, "--tasks", 2, "--variants", *NAMES]
    told = [str(one) for one in arguments]
    assert ablations.main(told) == 0
    printed = capsys.readouterr().out
    assert taken[0] == ablations.TRIED_STEPS
    (plan,) = (tmp_path / "out" / "seed0" / "ANIL").glob("*.json")
    steps = json.loads(plan.read_text("utf-8"))["steps"]
    assert steps in taken
    for name in (*NAMES, ablations.EXACT, *(f"{lora}, 50 steps" for lora in ablations.LORA)):
        assert printed.count(f"| {name} |") == 1, name
    (exact,) = [line for line in printed.splitlines() if line.startswith("| MAML, exact |")]
    assert exact.count("| – |") == 2  # beside itself, in either cell
    assert f"| ANIL | {steps} | 1 |" in printed

    taken.clear()
    assert ablations.main(told) == 0
    plans = (tmp_path / "out" / "seed0").glob("*/0.5.json")
    assert set(taken) == {json.loads(plan.read_text("utf-8"))["steps"] for plan in plans}
    assert capsys.readouterr().out == printed
    assert ablations.main([*told[:2], *told[2:4], "--recipe", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


def test_scopes_are_judged_as_served_by_gates_that_are_made_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_gate(monkeypatch)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    encoder = save_encoder(tmp_path / "tiny")
    cell = "label 5-way 5-shot"
    monkeypatch.setattr(ablations, "CELLS", ablations.CELLS[:1])
    arguments = ["--data", data, "--out", tmp_path / "out", "--recipe", recipe, "--cpu-s", 0.5]
    arguments += ["--seeds", 1, "--served", "--cells", cell, "--encoder", encoder, "--tasks"]
    told = [str(one) for one in arguments]
    assert ablations.main([*told, "2"]) == 0
    printed = capsys.readouterr().out
    for way in (as_served.ALONE, *as_served.served_ways(str(encoder))):
        assert printed.count(f"| {cell} | {way} | 2 |") == 1, way
    kept = sorted((tmp_path / "out" / "seed0").glob("*/*/gate*.json"))
    assert [path.name for path in kept] == ["gate-tiny.json", "gate.json"] * 2

    monkeypatch.delattr(as_served, "make_gate")
    assert ablations.main([*told, "2"]) == 0
    assert capsys.readouterr().out == printed
    assert ablations.main([*told, "3"]) == 0, "more tasks by the same gates"
    assert f"| {cell} | {as_served.SERVED} | 3 |" in capsys.readouterr().out
