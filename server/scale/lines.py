"""Lines of several processes as one log of JSON objects.

Ray shows what replicas write through this process, each line behind `(ServeReplica:… pid=…)`, which
no reader of JSON understands. Here the words before it become a member of the object, and what is
no object, such as the last words of an interpreter that dies, becomes the message of one.
"""

import io
import json
import re
import threading
import time
from typing import Any, Final, TextIO

FROM: Final = re.compile(r"\((?P<process>[^()]*\bpid=\d+[^()]*)\) (?P<line>.*)", re.DOTALL)


class JsonStream(io.TextIOBase):
    """A text stream that hands on every whole line it gets as one JSON object."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._begun: dict[int, str] = {}
        self._lock = threading.Lock()

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, text: str) -> int:
        """Take some of a line or several; threads do not see each other's halves."""
        with self._lock:
            thread = threading.get_ident()
            *whole, rest = (self._begun.pop(thread, "") + text).split("\n")
            if rest:
                self._begun[thread] = rest
            for line in filter(str.strip, whole):
                self._out.write(as_json(line) + "\n")
        return len(text)

    def flush(self) -> None:
        """Have what was handed on written; a line that has no end yet waits for it."""
        self._out.flush()


def as_json(line: str) -> str:
    """One line of a log as a JSON object, with `process` where Ray says whose it is."""
    found = FROM.fullmatch(line)
    about: dict[str, Any] = {} if found is None else {"process": found["process"]}
    said = line if found is None else found["line"]
    try:
        told = json.loads(said)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        now = time.time()
        utc = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        at = f"{utc}.{int(now % 1 * 1000):03d}Z"
        told = {"time": at, "level": "warning", "logger": "ray", "message": said.rstrip()}
    return json.dumps(told | about, ensure_ascii=False)
