"""An httptools request parser that ignores ``Upgrade`` (else the body of such a request is lost).

Clients offer HTTP/2 with an ordinary request (``curl --http2`` sends ``Upgrade: h2c``), and a server may ignore the
offer (RFC 9110, section 7.8). httptools takes such a request for one without a body, and its body for the next request.
"""

from __future__ import annotations

from httptools import HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class RequestParser:
    """The part of `httptools.HttpRequestParser` that uvicorn's protocol uses.

    A request with an Upgrade header is parsed twice: once up to the end of its headers, where the callbacks do nothing
    because `should_upgrade()` is true, then again without the header.
    """

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        self._protocol = protocol
        self._parser = self._new_parser()

    def feed_data(self, data: bytes) -> None:
        """Parse, and call the protocol's callbacks.

        Raises:
            HttpParserError: the bytes are not HTTP, or a callback raised.
        """
        rest = memoryview(data)
        while (taken := self._feed_up_to_offer(rest)) is not None:
            rest = rest[taken:]
            head = self._head_without_offer()
            self._parser = self._new_parser()  # the old one accepts nothing more on this connection
            self._parser.feed_data(head)

    def get_method(self) -> bytes:
        """Return the request's method."""
        return self._parser.get_method()

    def get_http_version(self) -> str:
        """Return the request's HTTP version, such as ``1.1``."""
        return self._parser.get_http_version()

    def should_keep_alive(self) -> bool:
        """Whether the client wants to use the connection again."""
        return self._parser.should_keep_alive()

    def should_upgrade(self) -> bool:
        """Whether the request being parsed has an Upgrade header, or is CONNECT, which asks for a tunnel."""
        return self._parser.should_upgrade()

    def _new_parser(self) -> HttpRequestParser:
        parser = HttpRequestParser(self._protocol)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does: answer before refusing it
        return parser

    def _feed_up_to_offer(self, data: memoryview) -> int | None:
        """Return the number of bytes up to the end of the headers of a request with Upgrade; None if there is none."""
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as offer:
            return offer.args[0]
        return None

    def _head_without_offer(self) -> bytes:
        parser, protocol = self._parser, self._protocol
        version = parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (parser.get_method(), protocol.url, version)]
        lines += [b"%s: %s" % header for header in protocol.headers if header[0] != b"upgrade"]
        return b"\r\n".join((*lines, b"", b""))
