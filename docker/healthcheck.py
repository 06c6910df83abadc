"""The container's health check: exit status 0 when the service says that it is ready, else 1.

The image has no curl, and this uses the standard library alone: no third-party import on every probe.
"""

from __future__ import annotations

import http.client
import os
import sys

TIMEOUT_S = 3.0


def check(host: str, port: int) -> tuple[bool, str]:
    """Ask ``/readyz`` once; return whether it answered 200, and a sentence for ``docker inspect``."""
    # http.client rather than urllib: a proxy in the container's environment must not get this request.
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = response.read(512).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        return False, f"no answer from {host}:{port}: {error}"
    finally:
        connection.close()
    return response.status == http.client.OK, f"{response.status} {body}"


def main() -> int:
    """Probe the address that the server was told to listen on, by loopback where it listens on all."""
    host = os.environ.get("Q8BERT_HOST", "127.0.0.1")
    ready, sentence = check(
        "127.0.0.1" if host in {"", "0.0.0.0", "::"} else host, int(os.environ.get("Q8BERT_PORT", "8000"))
    )
    print(sentence)
    return 0 if ready else 1


if __name__ == "__main__":
    sys.exit(main())
