"""``innerloop calibrate``: a gate's numbers for an encoder, and an artifact judged with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mini_run import RECIPE, call, evaluate, meta_train
from tiny_encoder import save_encoder

from adapters.artifact import load_artifact
from adapters.calibrated import CALIBRATED_FILE
from meta_training import calibrate_command, calibrating, gating
from meta_training.recipe import load_recipe


@pytest.fixture(scope="module", autouse=True)
def fewer_episodes() -> Iterator[None]:
    """Numbers that are worth nothing, in a fifth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gating, "EPISODES", 10)
        patch.setattr(gating, "MEMORY_TASKS", 5)
        yield


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture(scope="module")
def gated(finished: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with a gate of its own, from the same base."""
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("gated") / "run"))
    shutil.rmtree(folder / "maml")
    assert meta_train(data, folder, inner={"gate": True}) == 0
    return folder / "maml" / "artifact"


def test_a_gate_is_calibrated_served_and_judged(
    gated: Path, encoder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = Path(shutil.copytree(gated, tmp_path / "run" / "artifact"))
    before = load_artifact(artifact)
    assert call(calibrate_command, artifact, "--encoder", encoder, "--data", data) == 0
    assert str(artifact / CALIBRATED_FILE) in capsys.readouterr().out
    served = load_artifact(artifact, encoder=str(encoder)).rule.gate
    assert served is not None
    assert before.rule.gate is not None
    assert served.encoder is not None
    assert served.threshold != before.rule.gate.threshold
    assert served.mix is not None
    assert load_artifact(artifact).rule_hash == before.rule_hash, "nothing else was written"

    written = (artifact / CALIBRATED_FILE).read_bytes()
    assert call(calibrate_command, artifact, "--encoder", encoder, "--data", data) == 0
    assert (artifact / CALIBRATED_FILE).read_bytes() == written, "the same numbers again"

    report = (artifact / "report.json").read_bytes()
    methods = ("--methods", "ours-recall", "encoder", "tfidf")
    cells = ("--cells", "label", "5-way", "1-shot", "--episodes", 2, "--queries", 1)
    assert evaluate(artifact, data, "--encoder", encoder, *methods, *cells) == 0
    assert (artifact / "report.json").read_bytes() == report, "that of the gate of its own"
    judged = json.loads((artifact.parent / "report-tiny.json").read_text("utf-8"))
    (cell,) = [cell for cell in judged["cells"] if "1-shot" in cell]
    assert "nearest prototype, tiny" in judged["cells"][cell]
    assert (artifact.parent / "results-tiny.jsonl").exists()


def test_a_model_that_nobody_trained_is_calibrated_on_any_split(
    gated: Path, encoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Path(shutil.copytree(gated, tmp_path / "bare"))
    for name in ("inner_rule.json", "report.json", "gate_words.safetensors"):
        (bare / name).unlink()
    shutil.rmtree(bare / "session_init")
    assert load_artifact(bare).rule.gate is None
    any_recipe = tmp_path / "any.yaml"
    any_recipe.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    monkeypatch.setattr(calibrating, "ANY_RECIPE", any_recipe)
    assert call(calibrate_command, bare, "--encoder", encoder, "--data", data) == 0
    gate = load_artifact(bare, encoder=str(encoder)).rule.gate
    assert gate is not None
    assert (gate.layer, gate.words) == (1, None)


def test_the_recipe_for_models_that_nobody_trained_is_there() -> None:
    assert load_recipe(calibrating.ANY_RECIPE).data.validation


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert call(calibrate_command, *arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("innerloop calibrate: ")
    return told


def test_what_cannot_be_calibrated_is_told(
    artifact: Path, encoder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_encoder = ("--encoder", encoder, "--data", data)
    assert "there is no folder" in refused(capsys, tmp_path / "nothing", *with_encoder)
    nowhere = ("--encoder", "nowhere", "--data", data)
    assert "there is no folder nowhere" in refused(capsys, artifact, *nowhere)
    elsewhere = ("--encoder", encoder, "--data", tmp_path / "empty")
    assert "empty" in refused(capsys, artifact, *elsewhere)
    rule = json.loads((artifact / "inner_rule.json").read_text("utf-8"))
    rule["spec"]["scope"] = "full"
    (artifact / "inner_rule.json").write_text(json.dumps(rule), encoding="utf-8")
    shutil.rmtree(artifact / "session_init")
    assert "needs scope 'activated'" in refused(capsys, artifact, *with_encoder)
    assert not (artifact / CALIBRATED_FILE).exists()


def test_an_artifact_is_judged_with_a_gate_as_strict_as_a_server_would_have(
    gated: Path, artifact: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = ("--cells", "label", "5-way", "1-shot", "--episodes", 2, "--queries", 1)
    one_file = ("--results", gated.parent / "margins.jsonl")  # what is of which is told apart there
    opened = {}
    for margin, others in (("-1", one_file), ("1", one_file), ("0", one_file), ("1", ())):
        judged = ("--methods", "ours-recall", "--gate-margin", margin, *cells)
        assert evaluate(gated, data, *judged, *others) == 0
        name = "report.json" if margin == "0" else f"report-margin-{float(margin)}.json"
        report = json.loads((gated.parent / name).read_text("utf-8"))
        assert report["gate_margin"] == float(margin)
        (cell,) = [found for key, found in report["cells"].items() if "1-shot" in key]
        figures = cell["innerloop with recall"]["2 steps"]
        assert figures["tasks"] == 2
        opened[margin] = figures["opened"]["mean"], figures["opened_else"]["mean"]
    assert opened["-1"] == (1, 1)
    assert opened["1"] == (0, 0)
    assert opened["0"] not in (opened["-1"], opened["1"])
    assert (gated.parent / "results-margin-1.0.jsonl").exists()
    assert "gate margin 1.0" in (gated.parent / "report-margin-1.0.html").read_text("utf-8")
    capsys.readouterr()
    assert evaluate(artifact, data, "--gate-margin", 0.1, *cells) == 2
    assert "has no gate: judge it without --gate-margin" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate(gated, data, "--gate-margin", "much")
    assert "expected a number from -1 to 1, got 'much'" in capsys.readouterr().err


def test_the_encoder_as_a_method_needs_one(
    artifact: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(artifact, data, "--methods", "encoder") == 2
    assert "method encoder needs --encoder" in capsys.readouterr().err
