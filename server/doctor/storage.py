"""Redis and the data folder."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

from server.doctor import Finding
from server.sessions import silence
from server.sessions.binary import Binary, find_binary
from server.sessions.errors import EmbeddedRedisError
from server.sessions.folder import check_writer, owner

TIMEOUT_S = 3.0


def redis(url: str | None) -> Iterator[Finding]:
    """Whether there is a redis-server to start, or the one given by URL answers."""
    if url is not None:
        why = asyncio.run(silence(url, timeout_s=TIMEOUT_S))
        if why is None:
            yield Finding("redis", "ok", "that of INNERLOOP_REDIS_URL answers, so none is started")
        else:
            told = f"that of INNERLOOP_REDIS_URL does not answer: {why}"
            mend = "start it and let this machine reach it, or mend INNERLOOP_REDIS_URL"
            yield Finding("redis", "problem", told, mend)
        return
    try:
        binary = find_binary()
    except EmbeddedRedisError as error:
        yield Finding("redis", "problem", str(error), "install one, or set INNERLOOP_REDIS_URL")
        return
    yield Finding("redis", "ok", f"{binary.title} at {binary.path}")


def data_folder(folder: Path, url: str | None) -> Iterator[Finding]:
    """Whether the data folder can be used, and by whom it is."""
    if url is not None:
        return
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir():
        mend = "name another with INNERLOOP_DATA_DIR"
        yield Finding("data folder", "problem", f"{there} is a file, not a folder", mend)
        return
    if not os.access(there, os.W_OK | os.X_OK):
        mend = f"chown it to {_me()}, or name another with INNERLOOP_DATA_DIR"
        yield Finding("data folder", "problem", f"{there} may not be written by {_me()}", mend)
        return
    if there != folder:
        yield Finding("data folder", "ok", f"{folder} will be made at the first start")
        return
    yield from _used(folder)


def _used(folder: Path) -> Iterator[Finding]:
    status = folder.stat()
    if hasattr(os, "getuid") and status.st_uid not in (os.getuid(), 0) and os.getuid() != 0:
        told = f"{folder} belongs to user {status.st_uid}, not to {_me()}"
        yield Finding("data folder", "warning", told, "run the server as one user only")
    elif status.st_mode & 0o007:
        told = f"{folder} can be read by everybody on this machine"
        yield Finding("data folder", "warning", told, f"chmod 700 {folder}")
    holder = owner(folder)
    if holder is not None:
        yield Finding("data folder", "ok", f"{folder}, in use by a running server (pid {holder})")
        return
    binary: Binary | None = None
    try:
        binary = find_binary()
        check_writer(folder, binary)
    except EmbeddedRedisError as error:
        if binary is not None:  # without one, `redis` has told so
            yield Finding("data folder", "problem", str(error), "see above")
        return
    yield Finding("data folder", "ok", f"{folder}, writable and not in use")


def _me() -> str:
    return f"user {os.getuid()}" if hasattr(os, "getuid") else "you"
