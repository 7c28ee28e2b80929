"""Everything that can go wrong between a public repository and a data file.

SourceError
├── UnknownSourceError   (ValueError)  a name that the table does not have
├── TableError           (ValueError)  sources.yaml itself is wrong
├── FetchError           (OSError)     git is missing, or could not bring a commit
├── FormError            (ValueError)  a fetched file is not of the form its converter reads
└── ChecksumError        (ValueError)  a prepared file is missing or not the one the table names
"""

from __future__ import annotations


class SourceError(Exception):
    """Root of this room's errors; every message says what to do."""


class UnknownSourceError(SourceError, ValueError):
    """A source was asked for that the table does not list."""


class TableError(SourceError, ValueError):
    """The table of sources is not of the form that ``sources.py`` describes."""


class FetchError(SourceError, OSError):
    """git is missing, or could not bring the pinned commit."""


class FormError(SourceError, ValueError):
    """A fetched file is not of the form its converter was written for."""


class ChecksumError(SourceError, ValueError):
    """A prepared file is missing, damaged, or another one than the table names."""
