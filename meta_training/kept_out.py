"""Which classes, tasks and domains of one's own files were kept out of training, as runs note it.

A file that is edited is split anew: what was trained on may be held out then, and a report would be
about what the model has seen. Knows names; knows nothing about how files are split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from meta_training.tasks.sources import DataError

KEY: Final = "kept_out"  # in an artifact's report
RECORD: Final = "kept_out.json"  # in a run's folder
KeptOut = Mapping[str, Mapping[str, Sequence[str]]]
"""file -> held_out or validation -> names of classes, tasks or domains."""


def noted(kept_out: KeptOut) -> dict[str, dict[str, list[str]]]:
    """The same with digests for names: a report travels, and a name may be somebody's answer."""
    return {
        file: {use: sorted({_digest(name) for name in names}) for use, names in uses.items()}
        for file, uses in kept_out.items()
    }


def keep_kept_out(kept_out: KeptOut, folder: Path) -> None:
    """Note in the run's ``folder`` what is kept out, or make sure that it is what was noted there.

    Raises:
        DataError: a file is split in another way than it was.
    """
    path = folder / RECORD
    if path.exists():
        check_kept_out(json.loads(path.read_text(encoding="utf-8")), kept_out, str(folder))
    else:
        path.write_text(json.dumps(noted(kept_out)) + "\n", encoding="utf-8")


def check_kept_out(before: Mapping[str, Any] | None, now: KeptOut, whose: str) -> None:
    """Make sure that ``now`` is what was noted when ``whose`` was made; None: nothing was.

    Raises:
        DataError: it is not; names the file.
    """
    if before is None:
        return
    for file, uses in now.items():
        for use, names in uses.items():
            known = before.get(file, {}).get(use, [])
            if set(map(_digest, names)) != set(known):
                came = _unknown(names, known)
                what = f"{came[0]!r} is {use} now and was not" if came else f"less is {use} than"
                raise DataError(
                    f"{file}: {what} when {whose} was made. The file was edited, which splits it "
                    "anew, so that what is held out may have been trained on: put it back as it "
                    "was, or train anew in another --out"
                )


def check_further(before: Mapping[str, Any] | None, now: KeptOut, whose: str) -> None:
    """Make sure that nothing ``now`` is kept out that ``whose`` may have been trained on.

    Raises:
        DataError: something is; names the file and the first.
    """
    for file in now.keys() & (before or {}).keys():
        there = (before or {})[file]
        for use, names in now[file].items():
            untaught = ("held_out", "validation") if use == "validation" else ("held_out",)
            came = _unknown(names, [name for each in untaught for name in there.get(each, [])])
            if came:
                raise DataError(
                    f"{file}: {came[0]!r} is kept out of training ({use}) now, and was not when "
                    f"{whose} was made, which may have been trained on it: split the file as it "
                    "did, with the same name, where and seed, or name held_out and validation"
                )


def _unknown(names: Sequence[str], known: Collection[str]) -> list[str]:
    return [name for name in names if _digest(name) not in known]


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:12]
