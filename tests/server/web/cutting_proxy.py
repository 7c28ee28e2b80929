"""A TCP proxy in front of a live server, whose connections a test can cut."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class CuttingProxy:
    """Passes bytes on both ways, but for answers that are held and cut, and while it is shut."""

    def __init__(self, target: str) -> None:
        """``target`` is the address of the server behind it."""
        self._target = (urlsplit(target).hostname, urlsplit(target).port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._mark: bytes | None = None
        self._go = threading.Event()
        self.shut = False
        self._open: set[socket.socket] = set()

    @contextmanager
    def held_at(self, mark: bytes) -> Iterator[None]:
        """Hold answers behind these bytes while the block runs, and then cut them off."""
        self._mark, self._go = mark, threading.Event()
        try:
            yield
        finally:
            self._mark = None
            self._go.set()

    def shut_down(self) -> None:
        """Cut all connections and take no more, as a server that was killed."""
        self.shut = True
        for one in list(self._open):
            _end(one)

    def serve(self) -> None:
        """Take connections until closed."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.shut:
                    _end(client)
                    continue
                server = socket.create_connection(self._target)
                self._open |= {client, server}
                if self.shut:  # meanwhile, and these may not have been among those that were cut
                    _end(client)
                    _end(server)
                    continue
                for ends in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def close(self) -> None:
        """Cut everything for good."""
        _end(self._listener)
        self.shut_down()

    def _pass_on(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                mark = self._mark if answers else None
                if mark is not None and mark in data:
                    sink.sendall(data[: data.index(mark) + len(mark)])
                    self._go.wait()
                    break
                sink.sendall(data)
        for one in (source, sink):
            _end(one)
            self._open.discard(one)


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


@contextmanager
def cutting(target: str) -> Iterator[CuttingProxy]:
    """A proxy in front of ``target``, while the block runs."""
    proxy = CuttingProxy(target)
    thread = threading.Thread(target=proxy.serve, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join()
