"""API keys and admin keys: reading and checking them.

Keys come from files or the environment, never from the command line, which every user of the machine can read. Only
their SHA-256 digests are kept. A plain digest is enough because keys are long and random (`q8bert hash-key --new`):
salts and slow hashes protect secrets that can be guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from q8core.errors import InputError
from q8core.text_file import lines_of, read_text
from service.settings import ADMIN_KEY_VARIABLE, API_KEYS_VARIABLE, Settings

HASH_PREFIX = "sha256:"
SHORTEST_KEY = 16

_HASH = re.compile(r"[0-9a-fA-F]{64}")


class KeyRing:
    """Valid keys, of which only the digests are kept."""

    def __init__(self, digests: Iterable[bytes] = ()) -> None:
        self._digests = tuple(dict.fromkeys(digests))

    def __len__(self) -> int:
        return len(self._digests)

    def __repr__(self) -> str:
        return f"KeyRing({len(self)} keys)"

    def accepts(self, key: bytes) -> bool:
        """Whether this is one of the keys; takes the same time for any key."""
        digest = hashlib.sha256(key).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)


@dataclass(frozen=True)
class Keys:
    """The API keys, without which the data routes are open, and the admin keys, without which there is no /admin."""

    api: KeyRing
    admin: KeyRing


def hash_key(key: str) -> str:
    """Return the line that stands for a key in files and variables.

    Raises:
        InputError: the key is too short, or has characters that are not allowed in a header.
    """
    return HASH_PREFIX + _digest_of_key(key, "the key").hex()


def load_keys(settings: Settings, environment: Mapping[str, str] = os.environ) -> Keys:
    """Read the keys that settings and environment name.

    Raises:
        InputError: a file cannot be read or has no key, or a key is malformed. No message contains a key.
    """
    api = list(_from_file(settings.api_key_file))
    hashes = [part.strip() for part in environment.get(API_KEYS_VARIABLE, "").split(",") if part.strip()]
    for place, given in enumerate(hashes, 1):
        where = f"{API_KEYS_VARIABLE}, entry {place}"
        if not given.startswith(HASH_PREFIX):
            raise InputError(f"{where}, is not {HASH_PREFIX}<64 hex digits>; `q8bert hash-key` makes one of a key")
        api.append(_digest(given, where))
    admin = list(_from_file(settings.admin_key_file))
    if given := environment.get(ADMIN_KEY_VARIABLE, "").strip():
        admin.append(_digest(given, ADMIN_KEY_VARIABLE))
    return Keys(KeyRing(api), KeyRing(admin))


def _from_file(path: Path | None) -> Iterable[bytes]:
    """Return the digests of a file's lines, which are keys or hashes; empty lines and comments (#) are skipped."""
    if path is None:
        return
    numbered = [(number, line.strip()) for number, line in enumerate(lines_of(read_text(path)), 1)]
    numbered = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    if not numbered:
        raise InputError(f"the key file {path} holds no key")
    for number, line in numbered:
        yield _digest(line, f"{path}, line {number}")


def _digest(line: str, where: str) -> bytes:
    if not line.startswith(HASH_PREFIX):
        return _digest_of_key(line, where)
    digits = line.removeprefix(HASH_PREFIX)
    if not _HASH.fullmatch(digits):
        raise InputError(f"{where}: {HASH_PREFIX} is followed by {len(digits)} characters; 64 hex digits are expected")
    return bytes.fromhex(digits)


def _digest_of_key(key: str, where: str) -> bytes:
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise InputError(f"{where}: a key consists of printable ASCII characters without spaces")
    if len(key) < SHORTEST_KEY:
        raise InputError(f"{where}: a key has at least {SHORTEST_KEY} characters, this one {len(key)}")
    return hashlib.sha256(key.encode()).digest()
