"""An HTTP server of a test's own, for what real ones do too seldom."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stub(BaseHTTPRequestHandler):
    """What a test's handler goes on from: it writes no log."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    """One whose clients may all come before it looks."""

    request_queue_size = 128


@contextmanager
def stubbed(handler: type[Stub]) -> Iterator[str]:
    """Serve with ``handler`` while the block runs; gives the address."""
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
