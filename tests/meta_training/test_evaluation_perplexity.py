"""Perplexity of held-out dialogues: which rows, and two models' ratio on the same ones."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_run import evaluate
from transformers import PreTrainedTokenizerFast

from adapters.artifact import load_artifact
from meta_training.evaluation import perplexity
from meta_training.evaluation.perplexity import Perplexity, over, row_nats, rows_for
from meta_training.pretrain import dialogue_rows, language_loss
from meta_training.tasks.sources import Dialogue

NUMBERED = [Dialogue("s", "test", (("user", f"{n} " * 40),)) for n in range(100, 160)]


def test_no_dialogue_is_in_two_rows(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = dialogue_rows(NUMBERED, tokenizer, 64, 1000, 1)
    assert rows.shape[1] == 64
    said = [set(tokenizer.decode(row, skip_special_tokens=True).split()) for row in rows]
    numbers = [number for row in said for number in row if number.isdecimal() and len(number) == 3]
    assert len(numbers) == len(set(numbers)) > 20
    assert torch.equal(rows, dialogue_rows(NUMBERED, tokenizer, 64, 1000, 1))
    assert torch.equal(rows[:5], dialogue_rows(NUMBERED, tokenizer, 64, 5, 1))
    assert not torch.equal(rows, dialogue_rows(NUMBERED, tokenizer, 64, 1000, 2))


def test_what_fills_no_row_is_the_only_one(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = dialogue_rows([Dialogue("s", "test", (("user", "hello"),))], tokenizer, 64, 1000, 1)
    assert rows.shape[0] == 1
    assert 2 < rows.shape[1] < 64


def test_a_larger_model_has_fewer_rows(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_artifact(artifact)
    monkeypatch.setattr(perplexity, "LEAST_ROWS", 2)
    monkeypatch.setattr(perplexity, "WORK", 5 * loaded.model.num_parameters())
    assert len(rows_for(loaded.model, NUMBERED, loaded.tokenizer)) == 5
    monkeypatch.setattr(perplexity, "WORK", 1)
    assert len(rows_for(loaded.model, NUMBERED, loaded.tokenizer)) == 2


def test_a_ratio_is_of_the_same_rows(artifact: Path) -> None:
    loaded = load_artifact(artifact)
    rows = rows_for(loaded.model, NUMBERED, loaded.tokenizer)
    nats = row_nats(loaded.model, rows)
    with torch.no_grad():
        assert sum(nats) / len(nats) == pytest.approx(float(language_loss(loaded.model, rows)))
    worse = [own + 0.01 + 0.001 * (n % 2) for n, own in enumerate(nats)]
    found, alone = over(worse, nats), Perplexity.of(nats)
    assert found.mean == pytest.approx(Perplexity.of(worse).mean / alone.mean)
    assert 1.01 < found.low < found.mean < found.high < 1.0112
    assert alone.high / alone.low > found.high / found.low, "rows differ more than models"
    same = over(nats, nats).told()
    assert same == {"mean": 1.0, "low": 1.0, "high": 1.0, "rows": len(rows)}


def test_one_row_has_no_interval_and_valid_json() -> None:
    assert Perplexity.of([1.0]).told() == {
        "mean": round(math.e, 4),
        "low": None,
        "high": None,
        "rows": 1,
    }
    assert Perplexity.of([math.nan, 1.0]).told()["mean"] is None
    assert Perplexity.of([1e4]).told()["mean"] is None


def test_a_report_has_the_ratio_while_a_base_is_given(
    artifact: Path, finished: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def report(*more: object) -> dict[str, Any]:
        methods = ("--cells", "label", "5-way", "1-shot", "--episodes", 1, "--methods", "tfidf")
        assert evaluate(artifact, data, *methods, *more) == 0
        found: dict[str, Any] = json.loads((artifact / "report.json").read_text("utf-8"))
        return found

    told = report("--pretrained", finished / "pretrained")
    models, ratio = told["perplexity"], told["perplexity_ratio"]
    assert set(models) == {"innerloop", "pre-trained"}
    assert ratio["rows"] == models["innerloop"]["rows"] == models["pre-trained"]["rows"] > 0
    quotient = models["innerloop"]["mean"] / models["pre-trained"]["mean"]
    assert ratio["mean"] == pytest.approx(quotient, abs=1e-3)
    sentence = f"innerloop over pre-trained, row by row {ratio['mean']:.3f}"
    assert sentence in capsys.readouterr().out
    assert sentence in (artifact.parent / "report.html").read_text("utf-8")
    alone = report()
    assert set(alone["perplexity"]) == {"innerloop"}
    assert alone["perplexity_ratio"] == {}


def test_a_base_with_other_tokens_has_no_ratio(
    artifact: Path, finished: Path, data: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(finished / "pretrained", tmp_path / "other"))
    file = base / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    words = content["model"]["vocab"]
    first, second = list(words)[-2:]
    words[first], words[second] = words[second], words[first]
    file.write_text(json.dumps(content), "utf-8")
    few = ("--cells", "label", "5-way", "1-shot", "--episodes", 1, "--methods", "tfidf")
    assert evaluate(artifact, data, *few, "--pretrained", base) == 0
    told = json.loads((artifact / "report.json").read_text("utf-8"))
    assert set(told["perplexity"]) == {"innerloop", "pre-trained, in tokens of its own"}
    assert told["perplexity_ratio"] == {}
