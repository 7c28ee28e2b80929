from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meta_training.data.errors import ChecksumError
from meta_training.data.rows import (
    Row,
    dialogue,
    distinct,
    read_contents,
    utterance,
    write_rows,
)

ROWS = [utterance("a  b", "x", "d", "train"), utterance("ü", "y", "d", "test", lang="de")]


def test_turns_of_one_speaker_are_joined_and_begin_with_the_user() -> None:
    turns = [
        ("assistant", "hello"),
        ("user", "one "),
        ("user", ""),
        ("user", "two"),
        ("assistant", "three"),
    ]
    row = dialogue("n", "s", "d", None, turns, lang="en")
    assert row is not None
    assert list(row) == ["id", "source", "domain", "split", "lang", "turns"]
    assert row["turns"] == [
        {"role": "user", "text": "one two"},
        {"role": "assistant", "text": "three"},
    ]


@pytest.mark.parametrize("turns", [[], [("user", "x")], [("assistant", "x"), ("user", "y")]])
def test_a_dialogue_needs_both_sides(turns: list[tuple[str, str]]) -> None:
    assert dialogue("n", "s", "d", None, turns) is None


def test_of_copies_in_several_splits_the_test_one_is_kept() -> None:
    rows = [
        utterance("same", "i", "d", "train"),
        utterance("only", "i", "d", "train"),
        utterance("same", "i", "d", "val"),
        utterance("same", "i", "d", "test"),
        utterance("same", "other", "d", "train"),
    ]
    assert distinct(rows, ("text", "intent", "domain")) == [rows[1], rows[3], rows[4]]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["train", "val", "test"]))))
def test_distinct_keeps_each_text_once_in_its_best_split(pairs: list[tuple[str, str]]) -> None:
    rows: list[Row] = [{"text": text, "split": split} for text, split in pairs]
    kept = distinct(rows, ("text",))
    assert sorted(row["text"] for row in kept) == sorted({text for text, _ in pairs})
    for row in kept:
        splits = {split for text, split in pairs if text == row["text"]}
        wanted = next(split for split in ("test", "val", "train") if split in splits)
        assert row["split"] == wanted


def test_the_hash_is_that_of_the_lines_not_of_the_compression(tmp_path: Path) -> None:
    plain = write_rows(tmp_path / "a.jsonl", ROWS)
    packed = write_rows(tmp_path / "a.jsonl.gz", ROWS)
    assert plain == packed == read_contents(tmp_path / "a.jsonl.gz")
    assert plain.rows == 2
    again = gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes())
    assert again == (tmp_path / "a.jsonl").read_bytes()
    assert '"ü"' in again.decode()
    first = (tmp_path / "a.jsonl.gz").read_bytes()
    write_rows(tmp_path / "a.jsonl.gz", ROWS)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == first


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_rows(path, ROWS)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_rows(path, [{"text": object()}])

    def interrupted() -> Iterator[Row]:
        yield ROWS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(path, interrupted())
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with pytest.raises(ChecksumError, match=r"a\.jsonl\.gz is missing"):
        read_contents(path)
    write_rows(path, ROWS * 500)
    whole = path.read_bytes()
    for broken in (whole[:-20], whole[:40] + b"\0\1\2\3" + whole[44:], b"not gzip"):
        path.write_bytes(broken)
        with pytest.raises(ChecksumError, match=r"a\.jsonl\.gz is damaged"):
            read_contents(path)
