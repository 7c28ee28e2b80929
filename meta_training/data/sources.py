"""The table of public sources: which files, at which commit, under which licence.

Knows the form of ``sources.yaml``; knows nothing about how files are fetched or converted.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from meta_training.data.errors import TableError, UnknownSourceError
from meta_training.data.rows import Contents, Form

Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Origin(_Part):
    """Files of one repository at one commit."""

    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name")
    commit: str = Field(pattern=r"^[0-9a-f]{40}$", description="the checksum of the raw files")
    files: tuple[Text, ...] = Field(min_length=1, description="patterns as in .gitignore")


class Source(_Part):
    """One data file and where it comes from."""

    name: Text
    about: Text
    file: str = Field(pattern=r"^[\w.-]+\.jsonl(\.gz)?$", description="name of the data file")
    form: Form = Field(description="form of its rows")
    origins: tuple[Origin, ...] = Field(min_length=1)
    licence: Text
    attribution: Text
    rows: int = Field(gt=0, description="rows of the prepared file")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of its uncompressed lines")
    differs: str | None = Field(None, description="why a new conversion will differ from it")

    @property
    def prepared(self) -> Contents:
        """Contents of the file that the published model was trained on."""
        return Contents(self.rows, self.sha256)

    @property
    def pins(self) -> list[str]:
        """Its origins as ``owner/name@commit``."""
        return [f"{origin.repository}@{origin.commit}" for origin in self.origins]


def load_sources(text: str | None = None) -> tuple[Source, ...]:
    """Read the table, the packaged ``sources.yaml`` unless ``text`` is given.

    Raises:
        TableError: the table has an unknown, missing or malformed key; names it.
    """
    if text is None:
        text = files(__package__).joinpath("sources.yaml").read_text(encoding="utf-8")
    try:
        table = yaml.safe_load(text)["sources"]
        return tuple(Source(name=name, **entry) for name, entry in table.items())
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())
        raise TableError(f"the table of sources is wrong: {'; '.join(problems)}") from error
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise TableError(
            f"the table of sources must be YAML with a mapping 'sources': {error}"
        ) from error


def select(sources: Sequence[Source], names: Sequence[str] | None) -> list[Source]:
    """Return the sources called ``names``, in the order of the table; all where there are none.

    Raises:
        UnknownSourceError: a name is not in the table; lists those that are.
    """
    if not names:
        return list(sources)
    known = [source.name for source in sources]
    if unknown := [name for name in names if name not in known]:
        raise UnknownSourceError(
            f"unknown source {', '.join(map(repr, unknown))}; known are: {', '.join(known)}"
        )
    return [source for source in sources if source.name in names]
