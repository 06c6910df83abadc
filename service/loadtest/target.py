"""The target of a load test: an address checked to be this machine, unless remote ones are allowed."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from q8core.errors import InputError

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Target:
    """A service: ``address`` to connect to, ``host`` for the Host header."""

    scheme: str
    host: str
    address: str
    port: int
    prefix: str

    @property
    def authority(self) -> str:
        """The Host header."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return shown if self.port == _PORTS[self.scheme] else f"{shown}:{self.port}"


def parse_target(url: str, *, allow_remote: bool) -> Target:
    """Parse and resolve a service's URL.

    Later connections go to the resolved address, so that the name cannot resolve to another machine in between.

    Raises:
        InputError: the URL is malformed, the host unknown, or another machine without ``allow_remote``.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError as error:
        raise InputError(f"the URL {url!r} cannot be read: {error}") from error
    if parts.scheme not in _PORTS or not parts.hostname:
        raise InputError(f"the URL is {url!r}; expected http://HOST:PORT or https://HOST:PORT")
    if parts.query or parts.fragment or parts.username:
        raise InputError("the URL must not have a user, a query or a fragment; a key goes into --api-key-file")
    address = _resolve(parts.hostname, port)
    if not allow_remote and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        raise InputError(
            f"{parts.hostname} ({address}) is not this machine; a load test can take a service down, so that another "
            "machine must be yours and asked for with --allow-remote"
        )
    return Target(parts.scheme, parts.hostname, address, port, parts.path.rstrip("/"))


def _resolve(host: str, port: int) -> str:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(f"no host {host!r}: {error.strerror or error}") from error
    # IPv4 first: a service listens there unless told otherwise
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    assert family in (socket.AF_INET, socket.AF_INET6)
    return str(address[0])
