"""The process in which a new schema is tried before the server itself compiles it.

A thread that compiles cannot be stopped; a process can. Started at the first schema and kept. Knows
processes and lines; knows nothing about grammars, requests or event loops.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Final

from server.engine import schema_trial
from server.engine.errors import EngineFailed, EngineStopped

_log = logging.getLogger(__name__)
# Of the wall's clock, for a machine so busy that the CPU time is not used up.
_TRIAL_S: Final = 10.0
_START_S: Final = 60.0  # a vocabulary of 256,000 tokens takes a while
_TOO_LONG: Final = (-signal.SIGPROF, -signal.SIGKILL)


class TrialProcess:
    """Tries schemas one after the other, on one thread; ``kill`` is for every thread."""

    def __init__(self, tokenizer: str, vocabulary: int, end_id: int) -> None:
        """Start nothing yet. The tokenizer's JSON, as llguidance reads it."""
        self._hello = json.dumps([tokenizer, vocabulary, end_id])
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._killed = False

    def refusal(self, schema: str) -> str | None:
        """Why this schema cannot be had; None where it compiles.

        Raises:
            EngineFailed: no process can be started.
            EngineStopped: ``kill`` was called.
        """
        process = self._ready()
        answer = _ask(process, json.dumps(schema), _TRIAL_S)
        if answer:
            refused: str | None = json.loads(answer)
            return refused
        status = self.reap()
        self._check()
        if status in _TOO_LONG:
            return "the schema takes too long to compile: simplify its patterns"
        _log.error("a schema ended the process that tried it, with status %s", status)
        return "the schema cannot be compiled: simplify it"

    def kill(self) -> None:
        """End the process, whatever it does, and start no other."""
        with self._lock:
            self._killed = True
            if self._process is not None:
                self._process.kill()

    def reap(self) -> int | None:
        """Wait for the end of a process that is ending, and leave nothing of it."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.close()
        with suppress(BrokenPipeError):  # of what it did not read any more
            process.stdin.close()
        return process.wait()

    def _ready(self) -> subprocess.Popen[str]:
        if self._process is not None:
            if self._process.poll() is None:
                return self._process
            _log.warning("the process that tries schemas is gone; starting another")
            self.reap()
        with self._lock:
            self._check()
            try:
                self._process = process = subprocess.Popen(
                    [sys.executable, "-P", schema_trial.__file__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    start_new_session=True,  # a terminal's Ctrl-C is for the server to handle
                )
            except OSError as error:
                raise EngineFailed(f"no process to try schemas in: {error}") from error
        if not _ask(process, self._hello, _START_S):
            process.kill()
            status = self.reap()
            self._check()
            raise EngineFailed(f"the process that tries schemas did not start: status {status}")
        return process

    def _check(self) -> None:
        if self._killed:
            raise EngineStopped("the engine is stopping: try again later")


def _ask(process: subprocess.Popen[str], line: str, limit_s: float) -> str:
    """The answer to a line; empty where there came none and the process is ending."""
    assert process.stdin is not None
    assert process.stdout is not None
    timer = threading.Timer(limit_s, process.kill)
    timer.start()
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return process.stdout.readline()
    except BrokenPipeError:
        return ""
    finally:
        timer.cancel()
