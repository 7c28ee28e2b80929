"""What stands beside the data: manifest.json (what each file is) and ATTRIBUTION.md (whose it is).

Knows the table of sources and these two files; knows nothing about fetching or converting.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from meta_training.data.errors import SourceError
from meta_training.data.rows import Contents, replacing
from meta_training.data.sources import Source

MANIFEST = "manifest.json"
ATTRIBUTION = "ATTRIBUTION.md"
LICENCES = "licences"

LICENCE_URLS = {
    "Apache 2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC BY 3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC BY 4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC BY-SA 3.0": "https://creativecommons.org/licenses/by-sa/3.0/",
    "CC BY-SA 4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "CC0 1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CDLA-Permissive 1.0": "https://cdla.dev/permissive-1-0/",
    "CDLA-Permissive 2.0": "https://cdla.dev/permissive-2-0/",
    "CDLA-Sharing 1.0": "https://cdla.dev/sharing-1-0/",
    "MIT": "https://opensource.org/license/mit",
    "ODbL 1.0, contents DbCL 1.0": "https://opendatacommons.org/licenses/odbl/1-0/",
}

_INTRODUCTION = """# Whose data this is

Written by `innerloop data`. The files are changed versions of the originals: converted to JSON
lines, text brought to Unicode NFC with single spaces, repeats removed. When you pass a file on,
keep its licence and attribution with it; files under CC BY-SA, CDLA-Sharing and ODbL, and changed
versions of them, stay under the same licence. Licence texts that came with the sources are in
`licences/`.
"""


@dataclass(frozen=True)
class Outcome:
    """A data file in place: how it came there and what it holds."""

    source: Source
    how: Literal["converted", "copied", "kept"]
    contents: Contents

    @property
    def warning(self) -> str | None:
        """What a person must know when the file is not the prepared one."""
        prepared = self.source.prepared
        if self.contents == prepared:
            return None
        if self.contents.rows == prepared.rows:
            text = f"{prepared.rows} rows like the prepared file, but not the same contents"
        else:
            text = f"{self.contents.rows} rows, the prepared file has {prepared.rows}"
        if self.source.differs:
            text += f" (expected: {self.source.differs})"
        return f"{text}; results can differ from the published ones"


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of ``folder``'s manifest by source name; none where there is no manifest.

    Raises:
        SourceError: the manifest is damaged; says what to do.
    """
    path = folder / MANIFEST
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {entry["source"]: entry for entry in entries}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path} is damaged: delete it and run again") from error


def record(folder: Path, sources: Sequence[Source], outcome: Outcome) -> None:
    """Put ``outcome`` into ``folder``'s manifest and write the attribution of all that is there."""
    entries = read_manifest(folder)
    entries[outcome.source.name] = _entry(outcome)
    present = [source for source in sources if source.name in entries]
    files = [entries[source.name] for source in present]
    with replacing(folder / MANIFEST) as path:
        path.write_text(json.dumps({"files": files}, indent=1, ensure_ascii=False) + "\n", "utf-8")
    with replacing(folder / ATTRIBUTION) as path:
        path.write_text(attribution(present), "utf-8")


def attribution(sources: Sequence[Source]) -> str:
    """Return the text of ATTRIBUTION.md for ``sources``."""
    parts = [_INTRODUCTION]
    for source in sources:
        repositories = [
            f"  - https://github.com/{origin.repository}, commit `{origin.commit}`"
            for origin in source.origins
        ]
        parts.append(
            f"## {source.file}\n\n{source.about}\n\n"
            f"- Attribution: {source.attribution}\n"
            f"- Licence: [{source.licence}]({LICENCE_URLS[source.licence]})\n"
            "- From:\n" + "\n".join(repositories) + "\n"
        )
    return "\n".join(parts)


def _entry(outcome: Outcome) -> dict[str, Any]:
    source, prepared = outcome.source, outcome.source.prepared
    return {
        "source": source.name,
        "file": source.file,
        "rows": outcome.contents.rows,
        "sha256": outcome.contents.sha256,
        "same_as_prepared": outcome.contents == prepared,
        "warning": outcome.warning,
        "prepared": {"rows": prepared.rows, "sha256": prepared.sha256},
        "origins": source.pins,
        "licence": source.licence,
        "attribution": source.attribution,
    }
