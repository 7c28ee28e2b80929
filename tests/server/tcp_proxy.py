"""A TCP proxy that can fall silent: what a partition looks like from both of its sides."""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self


class Proxy:
    """Forwards to a port of this machine until it is cut; connections stay open meanwhile."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._passing = threading.Event()
        self._passing.set()
        self._ended = False
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        """Pass nothing on from now; what was being passed on may still arrive."""
        self._passing.clear()

    def heal(self) -> None:
        """Go on, with what was sent in between."""
        self._passing.set()

    def _accept(self) -> None:
        while not self._ended:
            try:
                here = self._listener.accept()[0]
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [here, there]
            for pair in ((here, there), (there, here)):
                self._threads.append(threading.Thread(target=self._forward, args=pair))
                self._threads[-1].start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._passing.wait()
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended = True
        self.heal()
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()
