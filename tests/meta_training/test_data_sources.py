from __future__ import annotations

import pytest
import yaml
from data_files import TREES

from meta_training.data.convert import READERS
from meta_training.data.errors import SourceError, TableError, UnknownSourceError
from meta_training.data.manifest import LICENCE_URLS, attribution
from meta_training.data.rows import IDENTITY
from meta_training.data.sources import load_sources, select

SOURCES = load_sources()
ONE = {
    "about": "a",
    "file": "a.jsonl",
    "form": "utterances",
    "origins": [{"repository": "o/n", "commit": "0" * 40, "files": ["/a"]}],
    "licence": "MIT",
    "attribution": "b",
    "rows": 1,
    "sha256": "0" * 64,
}


def test_every_source_has_a_reader_a_licence_and_a_small_copy_in_the_tests() -> None:
    names = [source.name for source in SOURCES]
    assert len(names) == 27
    assert sorted(READERS) == sorted(names)
    for source in SOURCES:
        assert source.licence in LICENCE_URLS
        assert source.file.split(".")[0] == source.name
        assert source.form in IDENTITY
        assert all(origin.repository in TREES for origin in source.origins)
    assert len({source.sha256 for source in SOURCES}) == len(SOURCES)


def test_attribution_names_every_source_its_licence_and_its_commit() -> None:
    text = attribution(SOURCES)
    for source in SOURCES:
        assert source.file in text
        assert source.attribution in text
        assert LICENCE_URLS[source.licence] in text
        assert all(origin.commit in text for origin in source.origins)


def test_selection_keeps_the_order_of_the_table() -> None:
    assert select(SOURCES, None) == list(SOURCES)
    assert select(SOURCES, []) == list(SOURCES)
    assert [s.name for s in select(SOURCES, ["hint3", "clinc150"])] == ["clinc150", "hint3"]


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownSourceError, match=r"'clinc'; known are: clinc150, multidogo"):
        select(SOURCES, ["clinc", "hint3"])
    assert issubclass(UnknownSourceError, SourceError)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"colour": "red"}, "colour"),
        ({"rows": None}, "rows"),
        ({"sha256": "abc"}, "sha256"),
        ({"file": "../a.jsonl"}, "file"),
        ({"form": "poems"}, "form"),
        ({"origins": []}, "origins"),
        ({"origins": [{"repository": "o/n", "commit": "main", "files": ["/a"]}]}, "commit"),
    ],
)
def test_a_wrong_table_is_refused_by_key(change: dict[str, object], named: str) -> None:
    text = yaml.safe_dump({"sources": {"a": ONE | change}})
    with pytest.raises(TableError, match=named):
        load_sources(text)


@pytest.mark.parametrize("text", ["", "sources: [1]", "other: {}", "sources: {a: [}"])
def test_a_table_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(TableError, match="sources"):
        load_sources(text)
