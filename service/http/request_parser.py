"""httptools' parser of requests, which ignores what that stops at: an offer to go on in another protocol.

Clients offer HTTP/2 beside a usual request (``curl --http2`` sends ``Upgrade: h2c``), and a server may take no notice
(RFC 9110, section 7.8). httptools takes such a request for one without a body, and its body for the next request.
"""

from __future__ import annotations

from httptools import HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class RequestParser:
    """What uvicorn's protocol uses of `httptools.HttpRequestParser`.

    A request with an offer is parsed twice, the second time without it. At the end of the first, which is that of its
    headers, `should_upgrade` is true in the protocol's callbacks, and they have nothing to do.
    """

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        self._protocol = protocol
        self._parser = self._new_parser()

    def feed_data(self, data: bytes) -> None:
        """Parse, and call the protocol back.

        Raises:
            HttpParserError: this is no HTTP, or a callback raised.
        """
        rest = memoryview(data)
        while (taken := self._feed_up_to_offer(rest)) is not None:
            rest = rest[taken:]
            head = self._head_without_offer()
            self._parser = self._new_parser()  # the old one may wait for nothing but the connection's end
            self._parser.feed_data(head)

    def get_method(self) -> bytes:
        """Return the request's method."""
        return self._parser.get_method()

    def get_http_version(self) -> str:
        """Return the request's version, as ``1.1``."""
        return self._parser.get_http_version()

    def should_keep_alive(self) -> bool:
        """Whether the client wants to use the connection again."""
        return self._parser.should_keep_alive()

    def should_upgrade(self) -> bool:
        """Whether the request that is being parsed has an offer, or is CONNECT, which asks for a tunnel."""
        return self._parser.should_upgrade()

    def _new_parser(self) -> HttpRequestParser:
        parser = HttpRequestParser(self._protocol)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn: answer a request before that data
        return parser

    def _feed_up_to_offer(self, data: memoryview) -> int | None:
        """Return how many bytes end with the headers of a request with an offer; None: there is none."""
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
