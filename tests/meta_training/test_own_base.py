"""A base and tasks of one's own, from a recipe to an artifact and its report."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mini_data import write_rows
from mini_run import call, evaluate
from transformers import MistralConfig, MistralForCausalLM

from adapters.artifact import load_artifact
from adapters.base_model import load_base
from meta_training import gating, select_command, train_command
from meta_training.corpus import held_out_only
from meta_training.evaluation.cells import Cell
from meta_training.evaluation.relative import QueryLoss
from meta_training.learner import Learner
from meta_training.pipeline import held_out_drawer
from meta_training.tasks.part import TaskPart
from meta_training.tokenizer import train_tokenizer

VERBS = ("send", "fix", "paint", "sell", "wash", "lend")
THINGS = ("kettle", "ladder", "lamp", "basket", "mirror", "blanket", "clock", "chair")
OWN = [
    {"path": "shop.jsonl", "form": "labels", "held_out": 0.5, "validation": 0.0},
    {"path": "shouts.jsonl", "form": "pairs", "family": "shout", "held_out": 0.5},
    {"path": "better.jsonl", "form": "preferences", "family": "better", "held_out": 0.5},
]
RECIPE: dict[str, Any] = {
    "name": "own",
    "data": {"tasks": OWN},
    "inner": {"rank": 2, "steps": 2, "anchors": 0, "gate": False},
    "outer": {"steps": 3, "tasks": 2, "language_rows": 1, "warmup_steps": 1},
}


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    pairs = [(verb, thing) for verb in VERBS for thing in THINGS]
    write_rows(
        folder / "shop.jsonl",
        [{"text": f"please {verb} my {thing}", "label": verb} for verb, thing in pairs],
    )
    write_rows(
        folder / "shouts.jsonl",
        [
            {
                "task": f"{verb} it",
                "prompt": f"a {thing} to {verb}",
                "completion": f"{verb.upper()}!",
                "pattern": "[A-Z]+!",
            }
            for verb, thing in pairs
        ],
    )
    write_rows(
        folder / "better.jsonl",
        [
            {
                "task": f"{verb} politely",
                "prompt": f"{verb} the {thing}",
                "chosen": f"gladly {thing}",
                "rejected": f"no {thing}",
            }
            for verb, thing in pairs
        ],
    )
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mistral with random weights: grouped-query attention, a sliding window, untied head."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer([f"please {v} my {t}" for v in VERBS for t in THINGS], 300, 128)
    torch.manual_seed(0)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            sliding_window=8,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(own_data: Path, base: Path | str, out: Path, **parts: Any) -> int:
    out.mkdir(parents=True, exist_ok=True)
    content = RECIPE | {"model": {"base": str(base)}} | parts
    path = out / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return call(train_command, path, "--data", own_data, "--out", out)


@pytest.fixture(scope="module")
def run(own_data: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert train(own_data, base, folder) == 0
    return folder


def test_the_artifact_is_the_base_with_a_start_and_a_rule(run: Path, base: Path) -> None:
    artifact = load_artifact(run / "maml" / "artifact")
    before = load_base(base, torch.device("cpu")).model
    assert artifact.model.config.model_type == "mistral"
    assert {"q_proj", "gate_proj"} <= set(artifact.spec.targets)
    moved = artifact.model.state_dict()["model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(moved, before.state_dict()["model.layers.0.mlp.up_proj.weight"])


def test_a_finished_run_is_not_made_again(
    run: Path, own_data: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "maml" / "artifact" / "model.safetensors").stat().st_mtime_ns
    assert train(own_data, base, run) == 0
    assert (run / "maml" / "artifact" / "model.safetensors").stat().st_mtime_ns == before
    assert "too little is held out" not in capsys.readouterr().err
    other = {"tasks": [OWN[0] | {"held_out": 0.0}]}
    assert train(own_data, base, run, data=other) == 2
    assert "was made with data.tasks" in capsys.readouterr().err


def test_what_the_report_will_not_have_is_told_before_training(
    own_data: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"tasks": [OWN[0] | {"held_out": 0.0}, *OWN[1:]]}
    assert train(own_data, base, tmp_path, data=kept) == 0
    assert "too little is held out to judge label by" in capsys.readouterr().err


@pytest.mark.parametrize(("held_out", "told"), [(0.5, False), (0.67, True)])
def test_a_batch_that_teaches_all_classes_has_no_locality(
    own_data: Path,
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    held_out: float,
    told: bool,
) -> None:
    """Three classes can leave one untaught, two cannot, which is told before training."""
    labels = {"tasks": [OWN[0] | {"held_out": held_out}]}
    assert train(own_data, base, tmp_path, data=labels) == 0
    said = "no training question is unrelated to an episode of label" in capsys.readouterr().err
    assert said == told


def test_it_is_judged_on_what_its_recipe_held_out(run: Path, own_data: Path) -> None:
    artifact = run / "maml" / "artifact"
    methods = ["--methods", "ours", "tfidf", "--episodes", 2]
    assert evaluate(artifact, own_data, *methods) == 0
    report = json.loads((artifact / "report.json").read_text("utf-8"))
    cells = report["cells"]
    assert {name.rsplit(" ", 1)[0] for name in cells} == {
        "label 3-way",
        "shout 1-way",
        "better 1-way",
    }
    shout = cells["shout 1-way 5-shot"]["innerloop"]["2 steps"]
    assert {"exact", "chrf", "nats", "obeys", "changed"} <= shout.keys()
    assert 0 <= cells["better 1-way 3-shot"]["innerloop"]["0 steps"]["preferred"]["mean"] <= 1
    assert "TF-IDF nearest centroid" in cells["label 3-way 1-shot"]
    assert report["perplexity"] == {}
    cost = report["cost"]["shout 1-way 5-shot"]
    assert cost["examples"] == 5
    assert cost["taught_tokens"] >= 10
    assert min(cost["steps_s"], cost["token_s"]) > 0
    assert "shout 1-way" in (artifact.parent / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("file", "row"),
    [
        ("shop.jsonl", {"text": "please send it " + "x" * 200, "label": "send"}),
        ("shouts.jsonl", {"task": "send it", "prompt": "a", "completion": "Ab" * 90}),
        ("better.jsonl", {"task": "send politely", "chosen": "a", "rejected": "Ab" * 90}),
    ],
)
def test_a_text_for_which_the_base_has_too_few_positions_is_refused(
    own_data: Path,
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    row: dict[str, str],
) -> None:
    """Few words, but many tokens."""
    longer = Path(shutil.copytree(own_data, tmp_path / "longer"))
    with (longer / file).open("a", encoding="utf-8") as rows:
        rows.write(json.dumps({"prompt": "too long?"} | row) + "\n")
    assert train(longer, base, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert re.search(rf"data.tasks: {file.split('.')[0]}: '.*' is \d+ tokens with its answer", said)
    assert "the base has 128 positions: lower longest_words" in said


def test_a_file_that_is_split_anew_is_refused(
    run: Path, own_data: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three more classes, and half of other ones are held out: some were trained on."""
    edited = Path(shutil.copytree(own_data, tmp_path / "edited"))
    with (edited / "shop.jsonl").open("a", encoding="utf-8") as file:
        for verb, thing in product(("bend", "melt", "hide"), THINGS):
            file.write(json.dumps({"text": f"please {verb} my {thing}", "label": verb}) + "\n")
    methods = ["--methods", "tfidf", "--episodes", 2]
    assert evaluate(run / "maml" / "artifact", edited, *methods) == 2
    said = capsys.readouterr().err
    assert "shop.jsonl: '" in said
    assert "is held_out now and was not when own was made. The file was edited" in said
    again = Path(shutil.copytree(run, tmp_path / "run"))
    assert train(edited, base, again) == 2
    assert "shop.jsonl: '" in capsys.readouterr().err
    assert train(own_data, base, again) == 0
    (again / "kept_out.json").unlink()  # as runs of before have none
    assert train(own_data, base, again) == 0


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize(
    "other",
    [{"name": "store"}, {"where": {"label": ["send", "fix", "paint", "sell"]}}, {"held_out": 0.67}],
)
def test_going_on_with_a_file_that_is_split_otherwise_is_refused(
    run: Path,
    own_data: Path,
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    other: dict[str, Any],
    noted: bool,
) -> None:
    """By the names that were kept out, or, of artifacts from before, by what the recipe says."""
    before = Path(shutil.copytree(run / "maml" / "artifact", tmp_path / "before"))
    report = json.loads((before / "report.json").read_text("utf-8"))
    if not noted:
        del report["kept_out"]
    (before / "report.json").write_text(json.dumps(report), encoding="utf-8")
    further = {"model": {"artifact": str(before)}, "inner": {"gate": False}}
    same = further | {"data": {"tasks": [OWN[0] | {"path": "./shop.jsonl"}]}}
    assert train(own_data, base, tmp_path / "same", **same) == 0
    capsys.readouterr()
    split = further | {"data": {"tasks": [OWN[0] | other]}}
    assert train(own_data, base, tmp_path / "other", **split) == 2
    said = capsys.readouterr().err
    assert "may have been trained on" in said
    assert ("shop.jsonl: '" if noted else "data.tasks.0: it was made with") in said


def test_artifacts_of_another_split_are_not_compared(
    run: Path, own_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Own tasks are split by the seed, whatever cells are compared."""
    reference, twin = run / "maml" / "artifact", tmp_path / "twin"
    shutil.copytree(reference, twin)
    report = json.loads((twin / "report.json").read_text("utf-8"))
    report["recipe"]["seed"] = 5
    (twin / "report.json").write_text(json.dumps(report), encoding="utf-8")
    judged = ("--reference", reference, "--data", own_data, "--held-out", "--tasks", 2)
    judged = (*judged, "--cells", "shout", "1-shot", "--results", tmp_path / "select.jsonl")
    assert call(select_command, reference, *judged) == 0
    assert call(select_command, twin, *judged) == 2
    assert f"{twin}: its recipe's seed is 5, that of {reference} is 0" in capsys.readouterr().err


def test_a_report_names_no_text_of_ones_own(run: Path) -> None:
    report = json.loads((run / "maml" / "artifact" / "report.json").read_text("utf-8"))
    assert {file: len(uses["held_out"]) for file, uses in report["kept_out"].items()} == {
        "shop.jsonl": 3,
        "shouts.jsonl": 3,
        "better.jsonl": 3,
    }
    assert not any(verb in json.dumps(report["kept_out"]["shop.jsonl"]) for verb in VERBS)


def test_it_is_judged_on_tasks_that_somebody_brings(
    run: Path, own_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = run / "maml" / "artifact"
    before = (artifact / "report.json").read_bytes()
    tasks = tmp_path / "mine.yaml"
    tasks.write_text(yaml.safe_dump(OWN[1:2]), encoding="utf-8")
    arguments = ["--tasks", tasks, "--methods", "ours", "--episodes", 2, "--cells", "3-shot"]
    assert evaluate(artifact, own_data, *arguments) == 0
    report = json.loads((artifact.parent / "report-mine.json").read_text("utf-8"))
    assert list(report["cells"]) == ["shout 1-way 3-shot"]
    assert report["trained_on"] == ["shouts.jsonl"]
    page = (artifact.parent / "report-mine.html").read_text("utf-8")
    assert "Tasks from mine.yaml" in page
    assert "its recipe reads shouts.jsonl too" in page
    assert "held out of every stage" not in page
    assert (artifact / "report.json").read_bytes() == before
    tasks.write_text("- {path: a.jsonl, form: poems}\n", encoding="utf-8")
    assert evaluate(artifact, own_data, *arguments) == 2
    assert "mine.yaml is no list of tasks:\n  0.form" in capsys.readouterr().err
    tasks.unlink()
    assert evaluate(artifact, own_data, *arguments) == 2
    assert f"cannot read the tasks {tasks}" in capsys.readouterr().err


def test_what_is_compared_by_was_learned_from_the_verdict(run: Path, own_data: Path) -> None:
    artifact = load_artifact(run / "maml" / "artifact")
    corpus = held_out_only(own_data, [TaskPart.model_validate(OWN[2])], seed=0)
    task = held_out_drawer(corpus, artifact.tokenizer, 0).draw(Cell("better", 1, 5), 0)
    shown = tuple(replace(turn, rejected="") for turn in task.episode.support)
    demonstrated = replace(task, episode=replace(task.episode, support=shown))
    losses = QueryLoss(Learner.from_artifact(artifact))
    (preferred,), (told,) = (losses.scores([each])["-"] for each in (task, demonstrated))
    assert preferred != told


def test_a_plain_model_folder_can_be_judged_on_tasks_that_somebody_brings(
    base: Path, own_data: Path, tmp_path: Path
) -> None:
    tasks, results = tmp_path / "mine.yaml", tmp_path / "results.jsonl"
    tasks.write_text(yaml.safe_dump(OWN[:1]), encoding="utf-8")
    arguments = ["--tasks", tasks, "--episodes", 2, "--cells", "3-shot", "--results", results]
    assert evaluate(base, own_data, *arguments, "--methods", "ours", "matching", "siamese") == 0
    report = json.loads((tmp_path / "report-mine.json").read_text("utf-8"))
    assert {"innerloop", "matching network, this base"} <= report["cells"][
        "label 4-way 3-shot"
    ].keys()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"model": {"base": "no/such-model"}}, "model.base: there is no folder no/such-model"),
        (
            {"outer": RECIPE["outer"] | {"families": {"house_reply": 1.0}}},
            "nothing to draw house_reply from",
        ),
        ({"data": {"tasks": [OWN[0] | {"held_out": 1.0}]}}, "no family has a weight"),
        ({"inner": RECIPE["inner"] | {"gate": True}}, "the gate needs 5 validation intents"),
        ({"inner": RECIPE["inner"] | {"targets": ["c_attn"]}}, "c_attn"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    own_data: Path,
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    parts: dict[str, Any],
    words: str,
) -> None:
    assert train(own_data, base, tmp_path / "out", **parts) == 2
    assert words in capsys.readouterr().err


def test_a_gate_is_made_of_fewer_classes_than_a_contrastive_step_has_by_default(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage is left out, so nobody said ``embed.kinds``, which the gate's words go by too."""
    for name, value in {"EPISODES": 1, "MEMORY_TASKS": 2, "MEMORY_TASKS_AT_ONCE": 2}.items():
        monkeypatch.setattr(gating, name, value)
    rows = [
        {"text": f"please {verb} my {thing} {number}", "label": f"{verb} {number}"}
        for verb, thing, number in product(VERBS, (*THINGS, "bag", "cup"), "ab")
    ]
    write_rows(tmp_path / "shop.jsonl", rows)
    gated = {
        "data": {"tasks": [OWN[0] | {"held_out": 0.0, "validation": 0.5}]},
        "inner": RECIPE["inner"] | {"gate": True},
        "words": {"steps": 2},
    }
    assert train(tmp_path, base, tmp_path / "out", **gated) == 0
    gate = load_artifact(tmp_path / "out" / "maml" / "artifact").rule.gate
    assert gate is not None
    assert gate.words is not None


def test_a_base_without_a_chat_template_needs_full_scope(
    own_data: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_base(base, torch.device("cpu"))
    loaded.tokenizer.chat_template = None
    plain = tmp_path / "plain"
    loaded.model.save_pretrained(plain)
    loaded.tokenizer.save_pretrained(plain)
    assert train(own_data, plain, tmp_path / "a") == 2
    assert "has no chat template" in capsys.readouterr().err
    full = RECIPE["inner"] | {"scope": "full"}
    assert train(own_data, plain, tmp_path / "b", inner=full, pretrain={"steps": 2, "rows": 2}) == 0
    assert load_artifact(tmp_path / "b" / "maml" / "artifact").spec.scope == "full"
