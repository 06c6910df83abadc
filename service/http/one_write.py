"""An answer's head and the start of its body in one write."""

from __future__ import annotations

import asyncio

_CONTINUE = b"HTTP/1.1 100 "


class OneWrite:
    """The transport of an answer with a body, as far as uvicorn uses it; holds the head until the body comes.

    uvicorn writes a head when the application begins to answer, and the body when it goes on. Two writes are two system
    calls and two packets, and wake a waiting client twice.

    Args:
        transport: the connection's.
    """

    __slots__ = ("_head", "_head_follows", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self._head_follows = True

    def write(self, data: bytes) -> None:
        """Hold the head, and write all else behind it at once."""
        if self._head_follows and not data.startswith(_CONTINUE):
            self._head, self._head_follows = data, False
            return
        self._transport.write(self._head + data)
        self._head = b""

    def is_closing(self) -> bool:
        """Whether the connection is closing."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Close the connection once everything is written."""
        if self._head:
            self.write(b"")
        self._transport.close()
