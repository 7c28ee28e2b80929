"""Fetching from real local repositories with real git, and copying prepared files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from data_files import TREES, commit, git, put

from meta_training.data.checkout import check_out
from meta_training.data.errors import ChecksumError, FetchError, SourceError
from meta_training.data.fetch import fetch
from meta_training.data.manifest import read_manifest
from meta_training.data.rows import read_contents
from meta_training.data.sources import Source, load_sources

CLINC = "clinc/oos-eval"


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every origin of the table as a small local repository."""
    folder = tmp_path_factory.mktemp("mirror")
    for repository, files in TREES.items():
        commit(put(folder / repository, files))
    return folder


@pytest.fixture(scope="module")
def table(mirror: Path) -> list[Source]:
    """The real table, pinned to the small repositories."""

    def pinned(source: Source) -> Source:
        origins = tuple(
            origin.model_copy(update={"commit": head(mirror / origin.repository)})
            for origin in source.origins
        )
        return source.model_copy(update={"origins": origins})

    return [pinned(source) for source in load_sources()]


@pytest.fixture(scope="module")
def prepared(mirror: Path, table: list[Source], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of prepared files, made from the small repositories."""
    folder = tmp_path_factory.mktemp("prepared")
    fetch(folder, sources=table, mirror=mirror.as_uri())
    return folder


@pytest.fixture(scope="module")
def matching(table: list[Source], prepared: Path) -> list[Source]:
    """The table with rows and hashes of the small prepared files."""
    entries = read_manifest(prepared)
    return [
        source.model_copy(
            update={field: entries[source.name][field] for field in ("rows", "sha256")}
        )
        for source in table
    ]


def head(folder: Path) -> str:
    return git(folder, "rev-parse", "HEAD").strip()


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_everything_is_fetched_converted_and_described(
    prepared: Path, table: Sequence[Source]
) -> None:
    files = [source.file for source in table]
    assert listing(prepared) == sorted([*files, "ATTRIBUTION.md", "licences", "manifest.json"])
    entries = read_manifest(prepared)
    assert list(entries) == [source.name for source in table]
    for source in table:
        contents = read_contents(prepared / source.file)
        entry = entries[source.name]
        assert (entry["rows"], entry["sha256"]) == (contents.rows, contents.sha256)
        assert entry["origins"] == source.pins
        assert entry["same_as_prepared"] is False
        assert f"{contents.rows} rows, the prepared file has {source.rows}" in entry["warning"]
        assert source.attribution in (prepared / "ATTRIBUTION.md").read_text("utf-8")
    assert (prepared / "licences/clinc--oos-eval-LICENSE").read_text("utf-8").startswith("Creative")


def test_patterns_of_the_table_leave_unwanted_files_out(
    prepared: Path,
) -> None:
    # Their trees hold files that would break or change these sources, had they been taken.
    assert read_contents(prepared / "dialogues-sgd.jsonl.gz").rows == 3
    assert "not wanted" not in (prepared / "rasa-nlu.jsonl").read_text("utf-8")
    assert read_contents(prepared / "rasa-nlu.jsonl").rows == 4


def test_a_second_run_keeps_what_is_there_without_the_network(
    matching: list[Source], prepared: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(prepared, tmp_path / "data")
    outcomes = fetch(folder, sources=matching, mirror=(tmp_path / "nowhere").as_uri())
    assert {outcome.how for outcome in outcomes} == {"kept"}
    assert all(outcome.warning is None for outcome in outcomes)
    assert all(entry["same_as_prepared"] for entry in read_manifest(folder).values())


@pytest.mark.parametrize("damage", ["missing", "changed", "other commit", "forced"])
def test_what_is_not_as_the_manifest_says_is_made_again(
    damage: str, table: list[Source], mirror: Path, prepared: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(prepared, tmp_path / "data")
    whole = (folder / "clinc150.jsonl").read_bytes()
    if damage == "missing":
        (folder / "clinc150.jsonl").unlink()
    elif damage == "changed":
        (folder / "clinc150.jsonl").write_bytes(whole[:-50])
    elif damage == "other commit":
        manifest = (folder / "manifest.json").read_text("utf-8")
        (folder / "manifest.json").write_text(
            manifest.replace("clinc/oos-eval@", "clinc/x@"), "utf-8"
        )
    names = ["clinc150", "snips"]
    outcomes = fetch(folder, names, sources=table, mirror=mirror.as_uri(), force=damage == "forced")
    other = "converted" if damage == "forced" else "kept"
    assert [outcome.how for outcome in outcomes] == ["converted", other]
    assert (folder / "clinc150.jsonl").read_bytes() == whole
    assert len(read_manifest(folder)) == len(table)


def test_a_difference_is_explained(
    matching: list[Source], table: list[Source], mirror: Path, tmp_path: Path
) -> None:
    clinc = next(source for source in matching if source.name == "clinc150")
    same_rows = clinc.model_copy(update={"sha256": "0" * 64})
    (outcome,) = fetch(tmp_path / "a", sources=[same_rows], mirror=mirror.as_uri())
    assert outcome.warning is not None
    assert "6 rows like the prepared file, but not the same contents" in outcome.warning
    assert "(expected: the prepared file leaves out" in outcome.warning
    (outcome,) = fetch(tmp_path / "b", sources=[clinc], mirror=mirror.as_uri())
    assert outcome.warning is None


def test_prepared_files_are_copied_after_their_checksum(
    matching: list[Source], prepared: Path, tmp_path: Path
) -> None:
    outcomes = fetch(tmp_path, ["hint3", "goemotions"], prepared, sources=matching)
    assert [outcome.how for outcome in outcomes] == ["copied", "copied"]
    for name in ("hint3.jsonl", "goemotions.jsonl.gz"):
        assert (tmp_path / name).read_bytes() == (prepared / name).read_bytes()
    assert sorted(read_manifest(tmp_path)) == ["goemotions", "hint3"]
    assert "hint3.jsonl" in (tmp_path / "ATTRIBUTION.md").read_text("utf-8")
    assert "clinc150" not in (tmp_path / "ATTRIBUTION.md").read_text("utf-8")
    assert (tmp_path / "licences").is_dir()
    assert not (tmp_path / ".raw").exists()


@pytest.mark.parametrize("name", ["hint3.jsonl", "goemotions.jsonl.gz"])
def test_a_wrong_prepared_file_is_named_and_not_copied(
    name: str, matching: list[Source], prepared: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(prepared, tmp_path / "copy")
    raw = bytearray((copy / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (copy / name).write_bytes(raw)
    with pytest.raises(ChecksumError, match=name.replace(".", r"\.")):
        fetch(tmp_path / "data", [name.split(".")[0]], copy, sources=matching)
    (copy / name).unlink()
    with pytest.raises(ChecksumError, match="is missing"):
        fetch(tmp_path / "data", [name.split(".")[0]], copy, sources=matching)
    assert listing(tmp_path / "data") == []


def test_asked_for_prepared_files_a_converted_one_is_replaced(
    matching: list[Source], prepared: Path, mirror: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(prepared, tmp_path / "data")
    (folder / "hint3.jsonl").write_text("{}\n", "utf-8")
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    (entry,) = (entry for entry in manifest["files"] if entry["source"] == "hint3")
    entry["sha256"] = read_contents(folder / "hint3.jsonl").sha256
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    (outcome,) = fetch(folder, ["hint3"], sources=matching, mirror=mirror.as_uri())
    assert outcome.how == "kept"
    (outcome,) = fetch(folder, ["hint3"], prepared, sources=matching)
    assert outcome.how == "copied"
    assert outcome.warning is None


def test_after_a_failure_finished_files_stay_and_the_run_goes_on(
    table: list[Source], mirror: Path, tmp_path: Path
) -> None:
    names = ["clinc150", "hint3"]
    broken = tmp_path / "mirror"
    shutil.copytree(mirror / CLINC, broken / CLINC)
    with pytest.raises(FetchError, match="git fetch failed in hellohaptik--HINT3"):
        fetch(tmp_path / "data", names, sources=table, mirror=broken.as_uri())
    assert list(read_manifest(tmp_path / "data")) == ["clinc150"]
    assert not list((tmp_path / "data").glob(".raw/hellohaptik*"))
    outcomes = fetch(tmp_path / "data", names, sources=table, mirror=mirror.as_uri())
    assert [outcome.how for outcome in outcomes] == ["kept", "converted"]


def test_a_commit_is_fetched_once_for_all_its_sources(
    table: list[Source], mirror: Path, tmp_path: Path
) -> None:
    names = ["sgd-intents", "dialogues-sgd", "dialogues-multiwoz", "dialogues-camrest", "hint3"]
    gone = tmp_path / "mirror"
    for source in table:
        for origin in source.origins:
            if source.name in names[:-1] and not (gone / origin.repository).exists():
                shutil.copytree(mirror / origin.repository, gone / origin.repository)
    with pytest.raises(FetchError):  # hint3 comes before the dialogues in the table
        fetch(tmp_path / "data", names, sources=table, mirror=gone.as_uri())
    outcomes = fetch(tmp_path / "data", names, sources=table, mirror=mirror.as_uri())
    assert [outcome.how for outcome in outcomes] == ["converted"] * 5
    assert not (tmp_path / "data/.raw").exists()


def test_a_damaged_manifest_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{", "utf-8")
    with pytest.raises(SourceError, match=r"manifest\.json is damaged: delete it"):
        fetch(tmp_path, ["hint3"], tmp_path)


def test_the_pinned_commit_is_fetched_whatever_came_later(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    first = commit(put(origin, {"a.txt": "old", "b/c.txt": "kept"}))
    commit(put(origin, {"a.txt": "new"}))
    folder = check_out(origin.as_uri(), first, ["/a.txt", "/b/*.txt"], tmp_path / "out")
    assert (folder / "a.txt").read_text() == "old"
    assert (folder / "b/c.txt").read_text() == "kept"


def test_only_the_files_asked_for_are_downloaded(tmp_path: Path) -> None:
    origin = put(
        tmp_path / "origin", {"a.txt": "small", "big.bin": b"x" * 100_000, "d/a.txt": "no"}
    )
    folder = check_out(origin.as_uri(), commit(origin), ["/a.txt"], tmp_path / "out")
    assert listing(folder) == [".git", "a.txt"]
    objects = git(folder, "rev-list", "--objects", "--missing=print", "FETCH_HEAD")
    assert sum(line.startswith("?") for line in objects.splitlines()) == 2


def test_a_finished_checkout_is_used_again_a_half_done_one_is_not(tmp_path: Path) -> None:
    origin = put(tmp_path / "origin", {"a.txt": "a", "b.txt": "b"})
    pin, out = commit(origin), tmp_path / "out"
    put(out, {"half.txt": "from an interrupted run"})
    check_out(origin.as_uri(), pin, ["/a.txt"], out)
    assert listing(out) == [".git", "a.txt"]
    put(out, {"mark.txt": "still here"})
    check_out(origin.as_uri(), pin, ["/a.txt"], out)
    assert "mark.txt" in listing(out)
    check_out(origin.as_uri(), pin, ["/a.txt", "/b.txt"], out)
    assert listing(out) == [".git", "a.txt", "b.txt"]


def test_an_unknown_commit_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    origin = put(tmp_path / "origin", {"a.txt": "a"})
    commit(origin)
    with pytest.raises(FetchError, match="git fetch failed"):
        check_out(origin.as_uri(), "1" * 40, ["/a.txt"], tmp_path / "out")
    assert listing(tmp_path) == ["origin"]


def test_a_git_that_runs_us_does_not_redirect_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = put(tmp_path / "origin", {"a.txt": "a"})
    pin = commit(origin)
    monkeypatch.setenv("GIT_DIR", str(origin / ".git"))
    folder = check_out(origin.as_uri(), pin, ["/a.txt"], tmp_path / "out")
    assert (folder / ".git").is_dir()
    assert (folder / "a.txt").read_text() == "a"


def test_a_missing_git_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match="install git, or read prepared files with --from"):
        check_out("file:///nowhere", "1" * 40, ["/a"], tmp_path / "out")
