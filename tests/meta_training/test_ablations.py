"""``python -m benchmarks.ablations`` on a model of seconds: what it trains, judges and resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from mini_run import RECIPE

from benchmarks import ablations
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
