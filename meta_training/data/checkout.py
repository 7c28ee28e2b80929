"""Brings the files of a repository at a pinned commit, through git.

The commit id is the checksum: git names every file, folder and commit by a hash of its contents and
computes these names itself from what arrives, so a server cannot pass off other contents under the
commit that was asked for. Only the files that match the patterns are downloaded (blobless fetch of
one commit, sparse checkout); a server that cannot filter sends the whole commit instead.

Knows git; knows nothing about sources, licences or what is in the files.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from meta_training.data.errors import FetchError

# Bytes as they are in the repository, no hooks, and no waiting for a connection that has stalled.
_SETTINGS = (
    "core.autocrlf=false",
    "core.symlinks=false",
    f"core.hooksPath={os.devnull}",
    "advice.detachedHead=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=60",
)
# Set by a git that runs us (a hook, an alias): they would point this git at another repository.
_FOREIGN = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")


def check_out(url: str, commit: str, patterns: Sequence[str], folder: Path) -> Path:
    """Fill ``folder`` with the files of ``commit`` that match ``patterns`` (as in .gitignore).

    A folder that was filled before with the same patterns is left as it is; one that was left half
    done is emptied first. Whatever interrupts the download, no half-filled folder stays.

    Raises:
        FetchError: git is missing, the repository is out of reach or has no such commit.
        OSError: the folder cannot be written.
    """
    done = folder.with_name(folder.name + ".complete")
    wanted = json.dumps([url, commit, *patterns])
    if done.exists() and done.read_text(encoding="utf-8") == wanted:
        return folder
    done.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        _fill(url, commit, patterns, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    done.write_text(wanted, encoding="utf-8")
    return folder


def _fill(url: str, commit: str, patterns: Sequence[str], folder: Path) -> None:
    _git(folder, "init", "--quiet")
    _git(folder, "remote", "add", "origin", url)
    _git(folder, "config", "core.sparseCheckout", "true")
    info = folder / ".git" / "info"
    info.mkdir(exist_ok=True)
    (info / "sparse-checkout").write_text("\n".join(patterns) + "\n", encoding="utf-8")
    _git(folder, "fetch", "--quiet", "--depth", "1", "--filter=blob:none", "origin", commit)
    if (arrived := _git(folder, "rev-parse", "FETCH_HEAD").strip()) != commit:
        raise FetchError(f"{url} answered with commit {arrived} instead of {commit}")
    _git(folder, "checkout", "--quiet", "--detach", "FETCH_HEAD")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", *(part for setting in _SETTINGS for part in ("-c", setting)), *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        result = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace"
        )
    except FileNotFoundError as error:
        raise FetchError(
            "git is not on the PATH: install git, or read prepared files with --from DIR"
        ) from error
    if result.returncode:
        reason = " | ".join(result.stderr.strip().splitlines()[-3:]) or "no reason given"
        raise FetchError(
            f"git {arguments[0]} failed in {folder.name}: {reason}. Check the network and the free"
            " disk space and run the same command again: finished files are kept"
        )
    return result.stdout
