"""Lines of the log: one for each message, whatever strangers call things."""

import json
import logging

from server.logs import JsonLines, TextLines

FORGED = "GET a\n2026-01-01 00:00:00,000 ERROR server: all is lost\r"


def test_nobody_writes_lines_of_their_own() -> None:
    record = logging.LogRecord("server", logging.INFO, __file__, 1, "%s", (FORGED,), None)
    assert TextLines().format(record).count("\n") == 0
    assert "\\n2026-01-01" in TextLines().format(record)
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == FORGED
