"""`q8bert hash-key`: the hash of a key, or a new key with its hash."""

from __future__ import annotations

import secrets
import sys
from getpass import getpass
from typing import Annotated

import typer


def hash_key(
    new: Annotated[bool, typer.Option("--new", help="Make a random key and print it before its hash.")] = False,
) -> None:
    """Print the hash that stands for a key in --api-key-file, --admin-key-file and Q8BERT_API_KEYS.

    The key is prompted for, or read from standard input; as an argument everybody on the machine could see it.
    """
    from service.operations.keys import hash_key as hashed  # pydantic is slow to import

    if new:
        key = secrets.token_urlsafe(32)
        typer.echo(key)
    else:
        key = getpass("key: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    typer.echo(hashed(key))
