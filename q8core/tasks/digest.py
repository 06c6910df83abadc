"""A digest of a data set's examples, to recognise runs on other data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from q8core.tasks.examples import QAExample, TextExample


def examples_digest(*parts: Sequence[TextExample] | Sequence[QAExample]) -> str:
    """Return the SHA-256 of all examples in their order, independent of their files."""
    digest = hashlib.sha256()
    for examples in parts:
        for example in examples:
            digest.update(repr(example).encode())
    return digest.hexdigest()
