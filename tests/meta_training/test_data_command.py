"""``innerloop data`` as a person meets it: output, exit codes, interruption, a full disk."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from data_files import TREES, commit, put

from meta_training.data.command import main
from meta_training.data.rows import utterance, write_rows
from meta_training.data.sources import load_sources

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "meta_training.data.command"]


def test_list_prints_every_source_with_licence_and_attribution(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out
    for source in load_sources():
        assert f"{source.name}: " in printed
        assert source.attribution in printed
        assert source.licence in printed
        assert all(pin in printed for pin in source.pins)


def test_list_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "hint3"]) == 0
    printed = capsys.readouterr().out
    assert "ODbL" in printed
    assert "clinc" not in printed


def test_an_unknown_name_is_an_error_with_the_known_ones(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["nonsense", "--target", str(tmp_path / "data")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("innerloop data: unknown source 'nonsense'; known are: clinc150")
    assert not (tmp_path / "data").exists()


def test_a_missing_prepared_file_is_an_error_that_names_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["hint3", "--from", str(tmp_path), "--target", str(tmp_path / "data")]) == 1
    assert f"{tmp_path / 'hint3.jsonl'} is missing" in capsys.readouterr().err


def test_a_repository_out_of_reach_is_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["hint3", "--mirror", tmp_path.as_uri(), "--target", str(tmp_path / "data")]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "git fetch failed in hellohaptik--HINT3" in error
    assert "run the same command again" in error


def test_a_target_that_is_a_file_is_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("mine")
    assert main(["hint3", "--target", str(tmp_path / "data")]) == 1
    assert f"{tmp_path / 'data'}: File exists" in capsys.readouterr().err
    assert (tmp_path / "data").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_target_that_may_not_be_written_is_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir(mode=0o500)
    arguments = ["hint3", "--mirror", tmp_path.as_uri(), "--target", str(tmp_path / "data")]
    assert main(arguments) == 1
    assert "choose another --target" in capsys.readouterr().err


def use_table(monkeypatch: pytest.MonkeyPatch, name: str, **changes: object) -> None:
    """Let the command read a table of one source, pinned to small local files."""
    (source,) = (source for source in load_sources() if source.name == name)
    table = (source.model_copy(update=changes),)
    monkeypatch.setattr("meta_training.data.fetch.load_sources", lambda: table)


def test_converted_files_are_summed_up_with_warnings(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = "hellohaptik/HINT3"
    pin = commit(put(tmp_path / repository, TREES[repository]))
    (source,) = (source for source in load_sources() if source.name == "hint3")
    origin = source.origins[0].model_copy(update={"commit": pin})
    use_table(monkeypatch, "hint3", origins=(origin,))
    arguments = ["hint3", "--target", str(tmp_path / "data"), "--mirror"]
    assert main([*arguments, tmp_path.as_uri()]) == 0
    printed = capsys.readouterr().out
    assert "9 rows  converted" in printed
    assert "  WARNING: 9 rows, the prepared file has 3680 (expected: " in printed
    assert "WARNING: 1 of them are not the files the published model was trained on" in printed
    assert main([*arguments, "file:///nowhere"]) == 0
    assert "9 rows  kept" in capsys.readouterr().out


def test_a_full_disk_is_said_and_leaves_no_half_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prepared").mkdir()
    rows = [utterance(f"number {i}", "count", "numbers", "train") for i in range(20_000)]
    contents = write_rows(tmp_path / "prepared/hint3.jsonl", rows)
    use_table(monkeypatch, "hint3", rows=contents.rows, sha256=contents.sha256)
    arguments = ["--from", str(tmp_path / "prepared"), "--target", str(tmp_path / "data")]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses to let a file grow beyond this, as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        code = main(arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert "no room for" in capsys.readouterr().err
    assert list((tmp_path / "data").iterdir()) == []
    assert main(arguments) == 0


def test_ctrl_c_stops_cleanly(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        mirror = f"git://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [*COMMAND, "hint3", "--mirror", mirror, "--target", str(tmp_path)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        silent.settimeout(600)
        connection, _ = silent.accept()
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=600)
        connection.close()
    assert process.returncode == 130
    assert "stopped: finished files are kept" in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob(".raw/*"))
