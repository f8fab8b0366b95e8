"""The one TCP port of a node: bound first, so that a port in use changes nothing on disk."""

from __future__ import annotations

import errno
import socket

from ringraft.node.identity import StartRefused

BACKLOG = 1024

ANY_HOSTS = frozenset({"0.0.0.0", "::", "[::]"})


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to ``host:port`` (port 0: a free one), not listening yet. Raises StartRefused."""
    name = host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as fault:
        raise StartRefused(
            f"node.bind {host}:{port}: {host} is no address of this machine ({fault.strerror})"
        ) from fault
    bound = socket.socket(family, kind, protocol)
    try:
        # A node that was killed must be able to come back at once.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # Listening here, not only when the server starts, makes a second process fail at this point.
        bound.listen(BACKLOG)
    except OSError as fault:
        bound.close()
        if fault.errno == errno.EADDRINUSE:
            raise StartRefused(
                f"port {port} on {host} is in use; stop the process that has it (lsof -i :{port}), "
                "or choose another with --bind"
            ) from fault
        raise StartRefused(f"node.bind {host}:{port} cannot be bound ({fault.strerror})") from fault
    bound.setblocking(False)
    return bound


def address_of(bound: socket.socket, host: str) -> str:
    """``host:port`` under which others on the same network reach ``bound``."""
    port = bound.getsockname()[1]
    if host in ANY_HOSTS:
        return f"{socket.gethostname()}:{port}"
    return f"{host}:{port}"
