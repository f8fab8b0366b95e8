"""host:port, as people write it."""

from __future__ import annotations

LOOPBACK_HOSTS = frozenset({"localhost", "[::1]"})
PORT_MAX = 65_535


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port``; an IPv6 host stands in brackets. ValueError says what is wrong."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or (":" in host and not host.startswith("[")):
        raise ValueError(f"{address!r} is not host:port (an IPv6 host stands in brackets: [::1]:8770)")
    if not port.isdecimal() or int(port) > PORT_MAX:
        raise ValueError(f"{address!r} has port {port!r}; a port is a number up to {PORT_MAX}")
    if any(c.isspace() or c in "/@?#" for c in host):
        raise ValueError(f"{address!r} is not host:port; leave out the scheme and the path")
    return host, int(port)


def is_loopback(address: str) -> bool:
    """Only this machine can reach ``address`` (host:port)."""
    host = split_address(address)[0].lower()
    return host in LOOPBACK_HOSTS or (host.startswith("127.") and host.replace(".", "").isdecimal())
