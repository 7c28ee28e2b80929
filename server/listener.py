"""The socket that the server answers on, taken before anything that takes long.

It imports nothing heavy: a port in use is told at once, and not after PyTorch was loaded. Clients
that connect while the model loads are answered when it is there; one replica of several refuses
them instead, so that a load balancer tries another.
"""

import errno
import os
import socket

BACKLOG = 2048


class StartError(RuntimeError):
    """The server cannot start; the message says what to do."""


def listen(host: str, port: int, *, accept: bool = True) -> socket.socket:
    """Listen on ``host`` and ``port``; port 0 picks a free one.

    Without ``accept`` the port is only taken, and whoever connects is refused until a server
    listens on it.

    Raises:
        StartError: the port is in use or not allowed, or the host is not this machine's.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise StartError(f"host {host!r} is no address: {error}") from error
    # "localhost" is both ::1 and 127.0.0.1, and every client tries the latter.
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        # Without it, a server that was just stopped leaves its port taken for a minute.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        if accept:
            listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(explain(error, host, port)) from error
    return listener


def address_of(listener: socket.socket) -> str:
    """The URL that clients reach the listener at."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def explain(error: OSError, host: str, port: int) -> str:
    """Say why ``host`` and ``port`` cannot be served on, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is in use: end what uses it, or choose another with --port "
            "(0 picks a free one)"
        )
    if error.errno == errno.EACCES:
        return f"port {port} on {host} is not allowed to you: choose one above 1023 with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host {host} is no address of this machine: choose another with --host"
    return f"cannot serve on {host} port {port}: {os.strerror(error.errno or 0)}"
