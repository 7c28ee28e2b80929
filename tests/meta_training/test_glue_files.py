"""GLUE's nine tasks in the form of their own files, for classifiers and as tasks of one's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mini_data import write_rows

from meta_training.tasks.classes import read_classes
from meta_training.tasks.own import load_tasks
from meta_training.tasks.part import TaskPart
from meta_training.tasks.sources import DataError

MNLI = (
    "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
    "sentence2_parse sentence1 sentence2 label1 gold_label"
)
STSB = "index genre filename year old_index source1 source2 sentence1 sentence2 score"


@dataclass(frozen=True)
class Glue:
    """A task's file: its header, a row with places for a number and a label, and its labels."""

    header: str
    row: str
    labels: tuple[str, str] = ("0", "1")
    prompt: str = "{sentence1} / {sentence2}"
    columns: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        rows = [self.row.format(n=n, label=self.labels[n % 2]) for n in range(6)]
        return "".join(f"{line}\n" for line in ([self.header] if self.header else []) + rows)


def columns(names: str) -> str:
    return names.replace(" ", "\t")


NLI = ("entailment", "not_entailment")
TASKS = {
    "CoLA": Glue("", "gj04\t{label}\t\tA sailor {n} sail'd.", prompt="{sentence}"),
    "SST-2": Glue(columns("sentence label"), "a film {n} \t{label}", prompt="{sentence}"),
    "MRPC": Glue(
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        '{label}\t7025{n}\t70264{n}\tHe said "so {n}\tHe said {n}',
        prompt="{#1 String} / {#2 String}",
        columns={"label": "Quality"},
    ),
    "QQP": Glue(
        columns("id qid1 qid2 question1 question2 is_duplicate"),
        "13319{n}\t21307{n}\t21307{n}\tHow is {n} made?\tHow does one make {n}?\t{label}",
        prompt="{question1} / {question2}",
        columns={"label": "is_duplicate"},
    ),
    "MNLI": Glue(
        columns(MNLI),
        "{n}\t3119{n}\t3119{n}n\ttravel\t( a )\t( b )\t(ROOT a)\t(ROOT b)\t"
        "A town {n}.\tA place {n}.\t{label}\t{label}",
        ("neutral", "contradiction"),
        columns={"label": "gold_label"},
    ),
    "QNLI": Glue(
        columns("index question sentence label"),
        "{n}\tWhen was it {n}?\tIt was {n}.\t{label}",
        NLI,
        "{question} / {sentence}",
    ),
    "RTE": Glue(
        columns("index sentence1 sentence2 label"), "{n}\tA day {n}.\tNo {n}.\t{label}", NLI
    ),
    "WNLI": Glue(columns("index sentence1 sentence2 label"), "{n}\tA cat {n}.\tIt {n}.\t{label}"),
}


def write(folder: Path, text: str) -> Path:
    path = folder / "train.tsv"
    path.write_text(text, encoding="utf-8")
    return path


def own(path: Path, **values: object) -> dict[str, tuple[str, ...]]:
    """The questions by label of a part of the form ``labels``."""
    whole = {"path": path.name, "form": "labels", "held_out": 0.0, "validation": 0.0}
    part = TaskPart.model_validate(whole | values)
    intents = load_tasks(path.parent, [part], seed=0)["train"].intents
    return {intent.name: intent.questions for intent in intents}


@pytest.mark.parametrize("name", TASKS)
def test_a_tasks_own_file_is_read(tmp_path: Path, name: str) -> None:
    task = TASKS[name]
    path = write(tmp_path, task.text())
    classes = read_classes(path)
    assert set(classes) == set(task.labels)
    assert all(len(texts) == 3 for texts in classes.values())
    asked = {label: tuple(map(" / ".join, texts)) for label, texts in classes.items()}
    assert own(path, prompt=task.prompt, columns=task.columns) == asked


def test_pairs_are_both_sentences_and_nothing_beside(tmp_path: Path) -> None:
    assert read_classes(write(tmp_path, TASKS["MNLI"].text()))["neutral"][0] == (
        "A town 0.",
        "A place 0.",
    )
    assert read_classes(write(tmp_path, TASKS["QQP"].text()))["1"][0] == (
        "How is 1 made?",
        "How does one make 1?",
    )


def test_the_first_sentence_of_cola_is_no_header(tmp_path: Path) -> None:
    found = read_classes(write(tmp_path, "ks08\t0\t*\tThey drank.\r\nc13\t1\t\tHe laughed.\r\n"))
    assert found == {"0": [("They drank.",)], "1": [("He laughed.",)]}


def test_rows_of_qqp_that_are_cut_or_empty_are_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = TASKS["QQP"].text()
    cut = "97930\t1\t2\tWhat is the evidence?\n\tWas he real?\t0\n"
    path = write(tmp_path, text + cut + "105780\t1\t2\tHow can I?\t\t0\n")
    assert read_classes(path) == read_classes(write(tmp_path, text))
    assert "train.tsv: 3 broken rows left out" in capsys.readouterr().err


@pytest.mark.parametrize("score", ["5.000", "3.80"])
def test_scores_are_refused_by_name(tmp_path: Path, score: str) -> None:
    row = f"0\tmain-captions\tMSRvid\t2012test\t1\tnone\tnone\tA plane.\tAn air plane.\t{score}\n"
    path = write(tmp_path, f"{columns(STSB)}\n{row * 2}")
    with pytest.raises(DataError, match=r"train.tsv:2: field 'score' is a score .*STS-B"):
        read_classes(path)
    with pytest.raises(DataError, match=r"train.tsv:2: field 'score' is a score .*STS-B"):
        own(path, prompt="{sentence1} / {sentence2}", columns={"label": "score"})


def test_scores_as_the_hub_has_them_are_refused_and_numbered_classes_are_not(
    tmp_path: Path,
) -> None:
    rows = [{"text": f"text {n}", "label": n % 2 + 0.0} for n in range(6)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert set(read_classes(path)) == set(own(path)) == {"0.0", "1.0"}
    write_rows(path, [*rows, {"text": "a", "label": 3.8}])
    for read in (read_classes, own):
        with pytest.raises(DataError, match=r"rows.jsonl:7: field 'label' is a score \(3.8\)"):
            read(path)


def test_a_file_without_labels_says_which_columns_there_are(tmp_path: Path) -> None:
    """As GLUE's test files."""
    with pytest.raises(DataError, match="is_duplicate; there are index, sentence"):
        read_classes(write(tmp_path, "index\tsentence\n0\tBill laughed.\n"))
