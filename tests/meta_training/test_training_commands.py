"""``meta-train`` and ``evaluate`` as the command line calls them: results, refusals, Ctrl-C."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from mini_run import RECIPE, call, evaluate, meta_train

from adapters.artifact import load_artifact
from meta_training import evaluate_command, train_command
from meta_training.evaluation.cells import Task
from meta_training.evaluation.judge import Scores
from meta_training.evaluation.methods import TfidfCentroid
from meta_training.evaluation.run import read_with_controls
from meta_training.recipe import Recipe, load_recipe

ESCAPED = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}  # as JSON in a page
ONE_CELL = ("--cells", "label", "5-way", "1-shot", "--episodes", 2)


def errors(capsys: pytest.CaptureFixture[str]) -> str:
    """What the command said, without progress bars."""
    return capsys.readouterr().err.replace("\r", "\n")


def change_report(artifact: Path, **changes: Any) -> None:
    path = artifact / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), encoding="utf-8")


def recipe_of(artifact: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact / "report.json").read_text("utf-8"))["recipe"]
    return found


class Page(HTMLParser):
    """What a page says and shows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.pictures: list[str] = []
        self.described: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            found = dict(attrs)
            self.pictures.append(found["src"] or "")
            self.described.append(found["alt"] or "")


def test_evaluate_writes_a_report_and_prints_tables(
    artifact: Path, finished: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained = finished / "pretrained"
    methods = ("--methods", "ours", "tfidf", "in-context", "--pretrained", pretrained)
    assert evaluate(artifact, data, *ONE_CELL, *methods) == 0
    printed = capsys.readouterr().out
    assert "### label 5-way 1-shot" in printed
    report = load_artifact(artifact).report or {}
    (cell,) = report["cells"].values()
    assert set(cell) == {"innerloop", "TF-IDF nearest centroid", "examples in the prompt"}
    assert set(cell["innerloop"]) == {f"{step} steps" for step in (0, 1, 2, 3, 5, 10)}
    figures = cell["innerloop"]["5 steps"]
    assert figures["tasks"] == 2
    assert 0 <= figures["choice"]["mean"] <= 1
    assert cell["TF-IDF nearest centroid"]["-"]["choice"]["mean"] > 0.5
    assert Recipe.model_validate(report["recipe"]) == load_recipe(finished / "recipe.yaml")
    assert set(report["perplexity"]) == {"innerloop", "pre-trained"}
    assert all(1 < one["mean"] < 10_000 for one in report["perplexity"].values())
    assert not list(artifact.glob("*.partial"))
    page = (artifact.parent / "report.html").read_text("utf-8")
    told = Page(page)
    counts = {"label": 11, "house_reply": 11, "persona": 4, "verdict": 4, "rating": 4}
    assert report["drawn_from"] == counts
    assert "mini, maml: how well it adapts" in told.text
    assert "innerloop's after 2 steps" in told.text
    assert all(f"{family} {count}" in told.text for family, count in counts.items())
    assert told.text.count("label 5-way 1-shot") >= 3  # two differences and a table
    differing = report["differences"]["label 5-way 1-shot"]
    assert set(differing) == {"TF-IDF nearest centroid", "examples in the prompt"}
    mean = differing["TF-IDF nearest centroid"]["-"]["choice"]["mean"]
    assert mean < 0
    assert f"{100 * mean:.1f} (" in told.text
    assert told.pictures
    assert all(source.startswith("data:image/svg+xml;base64,") for source in told.pictures)
    assert all(told.described)
    assert not re.search(r"<script|<link|@import|url\(", page), "it needs nothing else"


def test_a_plot_is_of_two_numbers_of_examples(
    artifact: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plots = [artifact.parent / name for name in ("none.svg", "one.svg", "two.svg")]
    one, more = ("--queries", 3, "--methods", "tfidf"), ("--cells", "label", "5-way")
    assert evaluate(artifact, data, *ONE_CELL, *one, "--plot", plots[0]) == 2
    said = capsys.readouterr()
    assert "none.svg is not drawn, the report is complete" in said.err
    assert "### label 5-way 1-shot, 3 queries" in said.out
    assert not plots[0].exists()
    for plot in plots[1:]:
        assert evaluate(artifact, data, *more, *one, "--episodes", 2, "--plot", plot) == 0
    assert plots[1].read_bytes() == plots[2].read_bytes()
    assert b"<svg" in plots[1].read_bytes()
    page = Page((artifact.parent / "report.html").read_text("utf-8"))
    assert any(words.startswith("Quality against examples") for words in page.described)


def test_a_page_of_nothing_says_so_and_draws_nothing(artifact: Path, data: Path) -> None:
    page = artifact.parent / "elsewhere.html"
    arguments = ("--cells", "house", "--methods", "tfidf", "--page", page)
    assert evaluate(artifact, data, *arguments) == 0
    told = Page(page.read_text("utf-8"))
    assert "No alternative was judged" in told.text
    assert told.pictures == []


def test_a_side_run_leaves_the_artifacts_report_as_it_is(
    artifact: Path, data: Path, tmp_path: Path
) -> None:
    methods = ("--methods", "tfidf", "--episodes", 2)
    assert evaluate(artifact, data, *methods, "--cells", "label", "5-way") == 0
    report = json.loads((artifact / "report.json").read_text("utf-8"))
    assert len(report["cells"]) == len(report["cost"]) == 3
    assert evaluate(artifact, data, *methods, "--cells", "label", "5-way", "1-shot") == 0
    again = json.loads((artifact / "report.json").read_text("utf-8"))
    assert again["cells"] == report["cells"], "lines of before count"
    assert again["cost"].keys() == report["cost"].keys()
    before = (artifact / "report.json").read_bytes()
    aside = ("--results", tmp_path / "aside" / "results.jsonl")
    assert evaluate(artifact, data, *methods, "--cells", "label", "5-shot", *aside) == 0
    assert (artifact / "report.json").read_bytes() == before
    told = json.loads((tmp_path / "aside" / "report.json").read_text("utf-8"))
    assert list(told["cells"]) == ["label 5-way 5-shot"]
    assert (tmp_path / "aside" / "report.html").exists()
    (artifact.parent / "results.jsonl").unlink()  # as of an artifact that came without it
    assert evaluate(artifact, data, *methods, "--cells", "label", "5-way", "1-shot") == 0
    assert (artifact / "report.json").read_bytes() == before, "one cell does not replace three"
    told = json.loads((artifact.parent / "report.json").read_text("utf-8"))
    assert list(told["cells"]) == ["label 5-way 1-shot"]


def test_wrong_examples_are_cells_of_their_own(artifact: Path, data: Path) -> None:
    arguments = ("--cells", "label", "5-way", "1-shot", "--queries", 2, "--wrong", 60, 0)
    assert evaluate(artifact, data, *arguments, "--methods", "tfidf", "--episodes", 4) == 0
    cells = (load_artifact(artifact).report or {})["cells"]
    name = "label 5-way 1-shot, 2 queries"
    assert set(cells) == {name, f"{name}, 60% wrong"}
    right, wrong = (
        cells[cell]["TF-IDF nearest centroid"]["-"]["choice"]["mean"] for cell in sorted(cells)
    )
    assert wrong < right
    page = (artifact.parent / "report.html").read_text("utf-8")
    assert "Quality against wrong examples" in page


def test_a_recipe_is_text_on_the_page(artifact: Path, data: Path) -> None:
    change_report(artifact, recipe={**recipe_of(artifact), "name": "<img src=x>&"})
    assert evaluate(artifact, data, *ONE_CELL, "--methods", "tfidf") == 0
    page = (artifact.parent / "report.html").read_text("utf-8")
    assert "<img src=x>" not in page
    assert json.dumps("<img src=x>&").translate(ESCAPED) in Page(page).text


def test_tfidf_is_left_out_where_there_is_nothing_to_pick(
    artifact: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(artifact, data, "--cells", "house", "--methods", "tfidf") == 0
    assert (load_artifact(artifact).report or {})["cells"] == {}


def test_evaluating_again_only_adds_what_is_missing(
    artifact: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(artifact, data, *ONE_CELL, "--methods", "tfidf") == 0
    results = artifact.parent / "results.jsonl"
    before = results.read_bytes()
    assert evaluate(artifact, data, *ONE_CELL, "--methods", "tfidf") == 0
    assert results.read_bytes() == before
    assert evaluate(artifact, data, *ONE_CELL, "--methods", "tfidf", "--seed", 7) == 0
    assert results.read_bytes().startswith(before)
    (cell,) = (load_artifact(artifact).report or {})["cells"].values()
    assert cell["TF-IDF nearest centroid"]["-"]["tasks"] == 2


def test_figures_of_other_data_or_another_control_do_not_count(
    artifact: Path,
    finished: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What was edited or trained again under the same name is judged again."""
    results, changed = artifact.parent / "results.jsonl", tmp_path / "changed"
    methods = ("--methods", "tfidf", "frozen", "--pretrained")

    def lines(data: Path, *pretrained: object) -> int:
        assert evaluate(artifact, data, *ONE_CELL, *methods, *pretrained) == 0
        return len(results.read_bytes().splitlines())

    assert lines(data, finished / "pretrained") == 4
    assert lines(data, finished / "maml" / "artifact") == 6, "the control's tasks alone"
    assert "do not count" not in errors(capsys)
    rows = [json.loads(line) for line in results.read_bytes().splitlines()]
    assert len({row["of"] for row in rows}) == 3

    path = Path(shutil.copytree(data, changed)) / "clinc150.jsonl"
    path.write_text(path.read_text("utf-8").replace("block a card", "block cards"), "utf-8")
    assert lines(changed, finished / "pretrained") == 10
    assert "6 lines are of this artifact on other data" in errors(capsys)
    (cell,) = (load_artifact(artifact).report or {})["cells"].values()
    assert {point["tasks"] for method in cell.values() for point in method.values()} == {2}


def test_a_control_that_is_not_named_is_the_one_judged_last(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    names = ("a/1", "a/1/p=x", "a/1/p=y", "a/1/q=z", "a/10")
    rows = [{"of": name, "method": name[4:5]} for name in names]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert [r["of"] for r in read_with_controls(path, "a/1", {"a/1"})] == [
        "a/1",
        "a/1/p=y",
        "a/1/q=z",
    ]
    assert [r["of"] for r in read_with_controls(path, "a/1", {"a/1", "a/1/p=x"})] == [
        "a/1",
        "a/1/p=x",
        "a/1/q=z",
    ]
    assert [r["of"] for r in read_with_controls(path, "a/1", {"a/1", "a/1/p=new"})] == [
        "a/1",
        "a/1/q=z",
    ]


def test_the_controls_are_tuned_and_scored(
    artifact: Path, finished: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meta_training.evaluation.methods.LEARNING_RATES", (1e-2,))
    monkeypatch.setattr("meta_training.evaluation.methods.TUNING_TASKS", 1)
    folders = ("--pretrained", finished / "pretrained", "--multitask", finished / "maml/artifact")
    methods = ("--methods", "lora", "multitask-lora")
    cells = ("--cells", "house_reply", "1-way", "1-shot", "--episodes", 1)
    assert evaluate(artifact, data, *methods, *cells, *folders) == 0
    (cell,) = (load_artifact(artifact).report or {})["cells"].values()
    assert set(cell) == {"LoRA, pre-trained base", "LoRA, multi-task base"}
    assert set(cell["LoRA, pre-trained base"]) == {"5 steps", "50 steps"}


@pytest.mark.parametrize("command", [train_command, evaluate_command])
def test_no_argument_is_called_as_the_command_lines_own(command: ModuleType) -> None:
    """``innerloop`` keeps the function it will call beside a command's arguments."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert not hasattr(parser.parse_args(["path"]), "run")
    assert command.DESCRIPTION


def test_evaluate_stopped_by_ctrl_c_goes_on(
    artifact: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = 0
    original = TfidfCentroid.scores

    def scores(self: TfidfCentroid, tasks: Sequence[Task]) -> dict[str, Scores]:
        nonlocal calls
        calls += 1
        if calls == 2:
            signal.raise_signal(signal.SIGINT)
        return original(self, tasks)

    monkeypatch.setattr(TfidfCentroid, "scores", scores)
    cells = ("--cells", "label", "5-way", "--episodes", 2, "--methods", "tfidf")
    assert evaluate(artifact, data, *cells) == 130
    assert "the same command goes on from here" in errors(capsys)
    assert len((artifact.parent / "results.jsonl").read_bytes().splitlines()) == 2
    assert "cells" not in (load_artifact(artifact).report or {})
    assert evaluate(artifact, data, *cells) == 0
    assert calls == 4, "the first cell was not run again"
    assert len((load_artifact(artifact).report or {})["cells"]) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--methods", "frozen"), "method frozen needs --pretrained"),
        (("--methods", "tfidf", "in-context"), "method in-context needs --pretrained"),
        (("--methods", "ours", "multitask-lora"), "method multitask-lora needs --multitask"),
        (
            ("--cells", "house", "5-way", "--methods", "ours"),
            "no cell has all of ['house', '5-way']",
        ),
        (
            ("--cells", "house_reply 1-way 5-shot", "--wrong", "20", "--methods", "ours"),
            "5-shot would be taught wrongly: one class has no other's answer",
        ),
        (("--methods", "prototypical-network"), "prototypical-network needs --prototypes"),
        (("--methods", "tfidf", "--prototypes", "nowhere"), "there is no folder nowhere"),
        (("--methods", "lora", "--pretrained", "nowhere"), "nowhere is no model folder"),
        (("--methods", "tfidf", "--multitask", "nowhere"), "there is no folder nowhere"),
        (("--methods", "tfidf", "--data", "nowhere"), "is missing: run `innerloop data"),
        (("--methods", "tfidf", "--device", "cuda:99"), "'cuda:99': PyTorch sees"),
    ],
)
def test_evaluate_refuses_before_it_works(
    artifact: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    assert evaluate(artifact, data, *arguments) == 2
    (said,) = (line for line in errors(capsys).splitlines() if line.startswith("innerloop"))
    assert said.startswith("innerloop evaluate: ")
    assert words in said
    assert not (artifact.parent / "results.jsonl").exists()


def test_evaluate_needs_an_artifact_with_its_recipe(
    artifact: Path, data: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tfidf = ("--methods", "tfidf")
    assert evaluate(artifact / "none", data, *tfidf) == 2
    assert "there is no folder" in errors(capsys)
    assert evaluate(finished / "pretrained", data, *tfidf) == 2
    assert "report.json has no recipe" in errors(capsys)
    change_report(artifact, recipe={"name": "x", "colour": "red"})
    assert evaluate(artifact, data, *tfidf) == 2
    assert "colour" in errors(capsys)
    change_report(artifact, recipe={"name": "x", "data": {"held_out_persona_share": 0.0}})
    assert evaluate(artifact, data, *tfidf) == 2
    assert "no cell has all of []; there are none" in errors(capsys)


def test_evaluate_names_broken_results_and_places_it_cannot_write(
    artifact: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results"
    path.write_text("no result\n", encoding="utf-8")
    assert evaluate(artifact, data, *ONE_CELL, "--methods", "tfidf", "--results", path) == 2
    assert f"{path}:1 is no result" in errors(capsys)
    below = path / "file"
    assert evaluate(artifact, data, *ONE_CELL, "--methods", "tfidf", "--results", below) == 1
    assert str(path) in errors(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--episodes", "0"),
        ("--threads", "-1"),
        ("--methods", "magic"),
        ("--seed", "x"),
        ("--wrong", "101"),
        ("--wrong", "1.5"),
        ("--queries", "0"),
        ("--plot", "x.foo"),
        ("--device", "gpu"),
        ("--x",),
    ],
)
def test_evaluate_refuses_wrong_arguments(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        call(evaluate_command, "artifact", *arguments)
    assert caught.value.code == 2
    assert arguments[0] in errors(capsys)


def test_meta_train_names_what_it_made(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    capsys.readouterr()
    assert meta_train(data, folder, "--threads", 1) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert made["artifact"] == str(folder / "maml" / "artifact")
    assert made["base_fingerprint"] == load_artifact(folder / "maml" / "artifact").fingerprint


# PyTorch takes a first step that is left out for a mistake in the order of calls.
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
def test_a_run_that_took_no_outer_step_makes_no_artifact(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its inner loop diverges at once; to start it again changes nothing."""
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(folder / "maml")
    diverging = {"inner": {"first_step_size": 1e30}}
    for _ in range(2):
        assert meta_train(data, folder, **diverging) == 2
        assert "none of 4 outer steps was taken" in errors(capsys)
    assert not (folder / "maml" / "artifact").exists()
    (line,) = (folder / "maml" / "progress.jsonl").read_text("utf-8").splitlines()
    assert "NaN" not in line
    assert None in json.loads(line).values()


def test_a_run_goes_below_runs_by_default(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "runs" / "mini")
    monkeypatch.chdir(tmp_path)
    recipe = finished / "recipe.yaml"
    assert call(train_command, recipe, "--data", data, "--algorithm", "maml") == 0


def refused(
    folder: Path, source: Path, capsys: pytest.CaptureFixture[str], /, **parts: dict[str, Any]
) -> str:
    """What ``meta-train`` says when it exits with 2."""
    assert meta_train(source, folder, **parts) == 2
    lines = errors(capsys).splitlines()
    start = [line.startswith("innerloop meta-train: ") for line in lines].index(True)
    return "\n".join(lines[start:])


def test_meta_train_refuses_a_missing_or_broken_recipe(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(train_command, tmp_path / "none.yaml", "--data", data) == 2
    assert "cannot read the recipe" in errors(capsys)
    assert "outer.stepps: Extra inputs" in refused(tmp_path, data, capsys, outer={"stepps": 1})
    assert not (tmp_path / "pretrained").exists()


@pytest.mark.parametrize("place", [{}, {"WORLD_SIZE": "2", "RANK": "0"}], ids=["alone", "team"])
def test_meta_train_refuses_a_device_that_is_not_there(
    place: dict[str, str],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert meta_train(data, tmp_path, "--device", "cuda:99") == 2
    assert "innerloop meta-train: 'cuda:99': PyTorch sees" in errors(capsys)
    assert not (tmp_path / "pretrained").exists()


def test_meta_train_refuses_another_split_of_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert meta_train(data, tmp_path, "--split", 1) == 2
    assert "innerloop meta-train: mini has no data.split" in errors(capsys)


def test_meta_train_refuses_data_it_cannot_use(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = refused(tmp_path, tmp_path / "nowhere", capsys)
    assert "nowhere/clinc150.jsonl is missing: run `innerloop data" in missing
    broken = Path(shutil.copytree(data, tmp_path / "data"))
    (broken / "snips.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    assert "snips.jsonl:1: field 'domain'" in refused(tmp_path, broken, capsys)
    held_out = {"held_out": {"clinc150": ["bank"]}}
    assert "holds out clinc150: bank" in refused(tmp_path, data, capsys, data=held_out)
    no_gate = refused(tmp_path, data, capsys, inner={"gate": True}, data={"validation": []})
    assert "the gate needs 5 validation intents" in no_gate
    assert not (tmp_path / "pretrained").exists(), "all of this shows before any training"


def test_meta_train_refuses_what_does_not_fit_the_recipe(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    said = refused(folder, data, capsys, inner={"targets": ["q_prod"]})
    assert "no module named q_prod" in said
    said = refused(folder, data, capsys, inner={"rank": 3})
    assert f"{folder / 'maml'} was made with inner.rank 2, the recipe has 3" in said
    said = refused(folder, data, capsys, model={"layers": 3})
    assert f"{folder} was made with model.layers 2, the recipe has 3" in said
    (folder / "maml" / "recipe.json").unlink()
    said = refused(folder, data, capsys, inner={"rank": 3})
    assert f"{folder / 'maml' / 'checkpoint.pt'} cannot be resumed from" in said
    (folder / "embedded.pt").write_bytes(b"")
    (folder / "maml" / "recipe.json").unlink()
    said = refused(folder, data, capsys)
    assert f"{folder / 'embedded.pt'} cannot be resumed from" in said
    (folder / "recipe.json").write_text("[1]", encoding="utf-8")
    assert f"{folder / 'recipe.json'} cannot be read" in refused(folder, data, capsys)


def test_meta_train_refuses_more_kinds_than_the_data_has(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(tmp_path, data, capsys, embed={"kinds": 900}, pretrain={"steps": 1})
    assert "embed.kinds is 900" in said


def test_meta_train_does_not_replace_what_is_not_an_artifact(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(folder / "maml" / "artifact")
    (folder / "maml" / "artifact").mkdir()
    (folder / "maml" / "artifact" / "diary.txt").write_text("dear me", encoding="utf-8")
    assert "holds something else" in refused(folder, data, capsys)
    assert (folder / "maml" / "artifact" / "diary.txt").exists()


def test_meta_train_says_where_it_cannot_write(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    content = RECIPE | {"pretrain": RECIPE["pretrain"] | {"steps": 1}}
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert call(train_command, recipe, "--data", data, "--out", recipe / "below") == 1
    assert str(recipe) in errors(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("r.yaml", "--algorithm", "magic"),
        ("r.yaml", "--threads", "0"),
        ("r.yaml", "--device", "tpu"),
        ("r.yaml", "--split", "-1"),
    ],
)
def test_meta_train_refuses_wrong_arguments(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        call(train_command, *arguments)
    assert caught.value.code == 2


def test_a_recipe_can_name_the_tokenizer(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = finished / "pretrained"

    def train(tokenizer: Path, **model: object) -> int:
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        parts = {"model": {"tokenizer": str(tokenizer), **model}, "outer": {"steps": 1}}
        return meta_train(data, folder, **parts)

    assert train(tmp_path / "none") == 2
    assert "cannot be loaded as a tokenizer" in capsys.readouterr().err
    assert train(given, vocab_size=300) == 2
    assert "they do not belong together" in capsys.readouterr().err
    assert train(given, artifact=str(given)) == 2
    assert "model.tokenizer: a base that is there brings its own" in capsys.readouterr().err
    other = load_artifact(finished / "maml" / "artifact").tokenizer
    other.add_tokens(["and one more"])
    other.save_pretrained(tmp_path / "other")
    assert train(tmp_path / "other", vocab_size=1000) == 0
    (folder,) = tmp_path.glob("*/maml/artifact")
    made = load_artifact(folder)
    assert made.tokenizer.get_vocab() == other.get_vocab()
    assert made.model.config.vocab_size == 1000
    assert made.tokenizer.model_max_length == RECIPE["model"]["context_tokens"]
    other.chat_template = None
    other.save_pretrained(tmp_path / "silent")
    assert train(tmp_path / "silent", vocab_size=1000) == 2
    assert f"{tmp_path / 'silent'} has no chat template" in capsys.readouterr().err
