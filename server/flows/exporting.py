"""A session's adapter as a PEFT folder in a zip: what other servers and libraries load.

It knows the artifact and an adapter's state, no session store and no HTTP.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from adapters.artifact import Artifact
from adapters.peft_io import save_peft
from adapters.state import AdapterState

ABOUT_FILE = "innerloop.json"
DATE = (1980, 1, 1, 0, 0, 0)  # of every entry, so that equal adapters give equal bytes
NO_GATE = (
    "PEFT knows no gate: loaded elsewhere, the adapter answers every prompt, also those that the "
    "server leaves to the base"
)


def peft_zip(artifact: Artifact, state: AdapterState, about: Mapping[str, Any]) -> bytes:
    """The adapter for ``PeftModel.from_pretrained``, with a note of where it comes from.

    Takes seconds the first time, because PEFT does.

    Raises:
        PeftFormatError: PEFT cannot express such an adapter.
    """
    note: dict[str, Any] = {
        **about,
        "model": artifact.name,
        "base_fingerprint": artifact.fingerprint,
        "scope": artifact.spec.scope,
    }
    if state.taught is not None:
        note["gate"] = NO_GATE
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_peft(folder, state, artifact.header, transposed=artifact.transposed)
        text = json.dumps(note, indent=1, sort_keys=True, allow_nan=False)
        (folder / ABOUT_FILE).write_text(text + "\n", encoding="utf-8")
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(folder.iterdir()):
                archive.writestr(zipfile.ZipInfo(path.name, DATE), path.read_bytes())
        return content.getvalue()
