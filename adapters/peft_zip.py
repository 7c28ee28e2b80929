"""A zip from outside that claims to hold a PEFT folder: checked before anything of it is read.

Nothing is ever unpacked to a disk. Knows zip files and their tricks; what is in the files, other
modules know.
"""

from __future__ import annotations

import io
import stat
import zipfile
import zlib
from pathlib import PurePosixPath
from typing import Final

from adapters.peft_io import CONFIG_FILE, PeftFormatError
from adapters.tensor_file import shorten

MAX_ENTRIES: Final = 64
MAX_DIRECTORY_BYTES: Final = 2**20
PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_END, _END_BYTES, _END_64 = b"PK\x05\x06", 22, b"PK\x06\x07"


class PeftZip:
    """The files of an adapter's folder, at the top of a zip or in the one folder that is there."""

    def __init__(self, content: bytes) -> None:
        """Look at the directory of the zip.

        Raises:
            PeftFormatError: no zip, no PEFT folder, or a name, pickle, link or kind of entry that
                has no place in one.
        """
        _check_directory(content)
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(content))
        except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError) as error:
            raise PeftFormatError(f"this is no zip file: {error}") from error
        entries = [entry for entry in self._archive.infolist() if not entry.is_dir()]
        if len(entries) > MAX_ENTRIES:
            raise PeftFormatError(
                f"the zip has {len(entries)} files: send the {MAX_ENTRIES} at most of one adapter"
            )
        for entry in entries:
            _check_entry(entry)
        names = [entry.filename for entry in entries]
        if len(set(names)) < len(names):
            raise PeftFormatError("the zip holds two files of one name")
        folder = _folder(names)
        self._entries = {
            PurePosixPath(entry.filename).name: entry
            for entry in entries
            if str(PurePosixPath(entry.filename).parent) == folder
        }

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def read(self, name: str, limit_bytes: int) -> bytes:
        """The content of a file of the folder, if it is no longer than ``limit_bytes``.

        Raises:
            PeftFormatError: it is not there, damaged, or longer, whatever length it declares.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise PeftFormatError(f"the zip has no {name}")
        if entry.file_size > limit_bytes:
            raise _too_long(name, limit_bytes)
        try:
            with self._archive.open(entry) as file:
                content = file.read(limit_bytes + 1)  # whatever it declared
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            OSError,
            RuntimeError,
            ValueError,
        ) as error:
            raise PeftFormatError(f"{name} in the zip is damaged: {error}") from error
        if len(content) > limit_bytes:
            raise _too_long(name, limit_bytes)
        return content


def _check_directory(content: bytes) -> None:
    """Refuse a directory of a million entries before Python makes an object of each.

    Its end is looked for as `zipfile` does, so that both mean the same one.
    """
    at = len(content) - _END_BYTES
    if content[at : at + 4] != _END or content[-2:] != b"\0\0":
        at = content.rfind(_END, max(0, at - 2**16))
    if at < 0:
        return  # no zip at all, which zipfile says best
    size_bytes = int.from_bytes(content[at + 12 : at + 16], "little")
    if content[max(0, at - 20) : max(0, at - 16)] == _END_64 or size_bytes > MAX_DIRECTORY_BYTES:
        raise PeftFormatError("the zip is made for many more files than one adapter has")


def _check_entry(entry: zipfile.ZipInfo) -> None:
    # Python cuts names at a zero byte and turns backslashes of Windows' zips into slashes.
    name, path = entry.orig_filename, PurePosixPath(entry.orig_filename)
    parts = name.replace("\\", "/").split("/")
    if path.is_absolute() or ".." in parts or "\\" in name or ":" in name or "\0" in name:
        raise PeftFormatError(f"the zip has a file {shorten(name)}, outside of its folder")
    if path.suffix.lower() in PICKLES:
        raise PeftFormatError(
            f"the zip has a file {shorten(name)}: pickled files are never read, save the adapter "
            "as safetensors and leave other files out"
        )
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise PeftFormatError(f"{shorten(name)} in the zip is a link or device, not a file")
    if entry.flag_bits & 0x1:
        raise PeftFormatError(f"{shorten(name)} in the zip is encrypted")
    if entry.compress_type not in METHODS:
        raise PeftFormatError(
            f"{shorten(name)} is compressed in a way that is not read: use deflate"
        )


def _folder(names: list[str]) -> str:
    """Where the configuration lies: at the top, or in the folder that somebody zipped."""
    folders = {
        str(PurePosixPath(name).parent) for name in names if PurePosixPath(name).name == CONFIG_FILE
    }
    if not folders:
        raise PeftFormatError(f"the zip has no {CONFIG_FILE}: is it a PEFT adapter?")
    if len(folders) > 1:
        raise PeftFormatError(f"the zip has {len(folders)} adapters: send one at a time")
    return folders.pop()


def _too_long(name: str, limit_bytes: int) -> PeftFormatError:
    return PeftFormatError(
        f"{name} in the zip is longer than the {limit_bytes} bytes that such a file can have here"
    )
