"""Puts data files into a folder: converted from the pinned repositories, or copied as prepared.

Knows the order of work and what is already there; the work itself is in its neighbours.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from meta_training.data.checkout import check_out
from meta_training.data.convert import convert
from meta_training.data.errors import ChecksumError
from meta_training.data.manifest import LICENCES, Outcome, read_manifest, record
from meta_training.data.rows import read_contents, replacing, write_rows
from meta_training.data.sources import Origin, Source, load_sources, select

GITHUB = "https://github.com"
RAW = ".raw"
# Patterns that bring a repository's licence along with its data.
LICENCE_FILES = ("/LICENSE*", "/LICENCE*", "/COPYING*", "/NOTICE*", "/DATALICENSE*")


def fetch(
    target_dir: Path,
    names: Sequence[str] | None = None,
    source_dir: Path | None = None,
    *,
    sources: Sequence[Source] | None = None,
    mirror: str = GITHUB,
    force: bool = False,
) -> list[Outcome]:
    """Put the data files called ``names`` (all where none are named) into ``target_dir``.

    With ``source_dir`` prepared files are copied from there after their checksum; without, the
    repositories are fetched below ``mirror`` (an address that git knows, ``mirror/owner/name``) and
    converted. A file that is there and as the manifest says is kept unless ``force``. The manifest
    and the attribution are written after each file, so an interrupted run can go on.

    Raises:
        UnknownSourceError: a name is not in the table.
        ChecksumError: a prepared file is missing or not the one in the table; names it.
        FetchError: git or a repository is out of reach.
        FormError: a fetched file is not of the expected form.
        OSError: the folder cannot be written, or the disk is full.
    """
    table = load_sources() if sources is None else sources
    chosen = select(table, names)
    target_dir.mkdir(parents=True, exist_ok=True)
    known = read_manifest(target_dir)
    outcomes = []
    with tqdm(chosen, unit="source", disable=None) as progress:
        for source in progress:
            progress.set_description(source.name)
            outcome = None if force else _kept(source, target_dir, known.get(source.name))
            if source_dir is not None and (outcome is None or outcome.warning):
                outcome = _copy(source, source_dir, target_dir)
            elif outcome is None:
                outcome = _convert(source, chosen, target_dir, mirror)
            record(target_dir, table, outcome)
            outcomes.append(outcome)
    shutil.rmtree(target_dir / RAW, ignore_errors=True)
    return outcomes


def _kept(source: Source, target_dir: Path, entry: dict[str, object] | None) -> Outcome | None:
    path = target_dir / source.file
    if not path.exists() or entry is None or entry.get("origins") != source.pins:
        return None
    try:
        contents = read_contents(path)
    except ChecksumError:
        return None  # a damaged copy of our own: made again
    return Outcome(source, "kept", contents) if contents.sha256 == entry.get("sha256") else None


def _copy(source: Source, source_dir: Path, target_dir: Path) -> Outcome:
    path = source_dir / source.file
    contents = read_contents(path)
    if contents != source.prepared:
        raise ChecksumError(
            f"{path} is not the prepared file: {contents.rows} rows with sha256 {contents.sha256},"
            f" expected {source.rows} rows with {source.sha256}; get it again, or convert it anew"
            " without --from"
        )
    with replacing(target_dir / source.file) as partial:
        shutil.copyfile(path, partial)
    if (source_dir / LICENCES).is_dir():
        (target_dir / LICENCES).mkdir(exist_ok=True)
        for text in sorted((source_dir / LICENCES).iterdir()):
            shutil.copyfile(text, target_dir / LICENCES / text.name)
    return Outcome(source, "copied", contents)


def _convert(source: Source, chosen: Sequence[Source], target_dir: Path, mirror: str) -> Outcome:
    roots = []
    for origin in source.origins:
        folder = target_dir / RAW / f"{origin.repository.replace('/', '--')}-{origin.commit[:12]}"
        url = f"{mirror.rstrip('/')}/{origin.repository}"
        roots.append(check_out(url, origin.commit, _patterns(origin, chosen), folder))
        _keep_licences(folder, target_dir / LICENCES, origin.repository.replace("/", "--"))
    contents = write_rows(target_dir / source.file, convert(source, roots))
    return Outcome(source, "converted", contents)


def _patterns(origin: Origin, chosen: Sequence[Source]) -> list[str]:
    """All patterns that the chosen sources have for this commit, so that it is fetched once."""
    same = (
        other
        for source in chosen
        for other in source.origins
        if (other.repository, other.commit) == (origin.repository, origin.commit)
    )
    return [*dict.fromkeys(pattern for other in same for pattern in other.files), *LICENCE_FILES]


def _keep_licences(checkout: Path, target: Path, prefix: str) -> None:
    for pattern in LICENCE_FILES:
        for path in sorted(checkout.glob(pattern.lstrip("/"))):
            if path.is_file():
                target.mkdir(exist_ok=True)
                shutil.copyfile(path, target / f"{prefix}-{path.name}")
