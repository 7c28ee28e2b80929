"""`gate_encoders.json`: a gate's numbers for every encoder that it was calibrated with.

A threshold is worth nothing for other vectors than those it was chosen on. Knows the file's form.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from adapters.config import AdapterError, Gate
from adapters.encoder import Encoder
from adapters.encoder_folder import carried
from adapters.rule_io import FilePart, GateNumbers, gate_numbers
from adapters.words import Words

CALIBRATED_FILE: Final = "gate_encoders.json"


class CalibrationError(AdapterError, ValueError):
    """A gate has no usable numbers for an encoder; the message says what to do."""


class _Calibrated(FilePart):
    name: str
    digest: str
    gate: GateNumbers


class _File(FilePart):
    format_version: Literal[1]
    encoders: list[_Calibrated]


def installed_encoder(folder: Path) -> str | None:
    """The published encoder that is installed here and that the gate in ``folder`` has numbers for.

    Raises:
        CalibrationError: the file of numbers is broken.
    """
    return next((entry.name for entry in _read(folder) if carried(entry.name) is not None), None)


def calibrated_gate(folder: Path, encoder: Encoder, words: Words | None) -> Gate:
    """The gate of the artifact in ``folder`` with this encoder, and its table of words, if any.

    Raises:
        CalibrationError: there are no numbers for it, they are for another table, or the file is
            broken.
    """
    known = {entry.digest: entry for entry in _read(folder)}
    entry = known.get(encoder.digest)
    if entry is None:
        those = ", ".join(sorted(f"{other.name} ({other.digest[:16]})" for other in known.values()))
        raise CalibrationError(
            f"the gate of {folder} has no numbers for the encoder {encoder.name}, of digest "
            f"{encoder.digest[:16]}: `innerloop calibrate {folder} --encoder ...` makes them, "
            "and `innerloop serve --encoder none` needs none"
            + (f"; there are some for {those}" if those else "")
        )
    if (words and words.digest) != entry.gate.words:
        raise CalibrationError(
            f"{folder / CALIBRATED_FILE} is for another table of words than the one beside it: "
            "run `innerloop calibrate` again"
        )
    return entry.gate.gate(words, encoder)


def calibrated_text(folder: Path, gate: Gate) -> str:
    """The file's content with the numbers of ``gate`` for its encoder, beside those of others.

    Raises:
        CalibrationError: what is there is broken.
    """
    assert gate.encoder is not None
    new = _Calibrated(
        name=gate.encoder.name,
        digest=gate.encoder.digest,
        gate=GateNumbers.model_validate(gate_numbers(gate)),
    )
    others = [entry for entry in _read(folder) if entry.digest != new.digest]
    entries = sorted([*others, new], key=lambda entry: entry.name)
    return _File(format_version=1, encoders=entries).model_dump_json(indent=1) + "\n"


def _read(folder: Path) -> list[_Calibrated]:
    path = folder / CALIBRATED_FILE
    if not path.exists():
        return []
    try:
        return _File.model_validate(json.loads(path.read_bytes())).encoders
    except (OSError, ValueError, RecursionError) as error:
        what = error.errors()[0] if isinstance(error, ValidationError) else None
        where = what and f"{'.'.join(map(str, what['loc']))}: {what['msg']}"
        raise CalibrationError(f"{path} is not usable: {where or error}") from error
