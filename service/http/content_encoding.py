"""The Content-Encoding of requests: no body is decompressed, so a compressed one is refused."""

from __future__ import annotations

from collections.abc import Iterable

from service.errors import EncodedBody

_IDENTITY = "identity"
_MOST_SHOWN = 60


def check_encoding(method: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse a body whose header says that it is compressed, whatever its bytes are.

    Args:
        method: only POST has a body here; other methods' bodies are not read.
        headers: with names in lower case, as in ASGI.

    Raises:
        EncodedBody: Content-Encoding names anything but identity.
    """
    if method != "POST":
        return
    # several header lines form one list (RFC 9110, section 5.3), in which empty elements do not count
    given = ", ".join(value.decode("latin-1").strip() for name, value in headers if name == b"content-encoding")
    if any(coding.strip().lower() not in ("", _IDENTITY) for coding in given.split(",")):
        shown = given if len(given) <= _MOST_SHOWN else f"{given[:_MOST_SHOWN]}..."
        raise EncodedBody(f"the body has Content-Encoding: {shown}; send it uncompressed, without this header")
