"""What our protocol class uses of uvicorn's, which uvicorn may change in any release."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from unittest.mock import Mock

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.http import protocol

OF_THE_CYCLE = {"transport", "response_started", "response_complete"}
OF_THE_STATE = {"default_headers"}
OTHERS = {"limits", "overload", "request_arrives", "on_chunk_header", "on_chunk_complete", "resume_writing"}
"""Our own names, those of httptools, and of asyncio."""


def listed() -> set[str]:
    return set(re.findall(r"``(\w+)``", protocol.__doc__ or ""))


def attributes_of(source: type) -> set[str]:
    """Those that a class sets on itself when it is made."""
    return set(re.findall(r"self\.(\w+)(?:: [^=\n]+)? = ", inspect.getsource(source.__init__)))


def test_the_installed_uvicorn_has_all_that_is_listed() -> None:
    loop = asyncio.new_event_loop()
    try:
        made = HttpToolsProtocol(Config(Mock()), ServerState(), {}, _loop=loop)
        made.on_message_begin()  # of a request: its url and headers
        missing = {name for name in listed() - OF_THE_CYCLE - OF_THE_STATE if not hasattr(made, name)}
    finally:
        loop.close()
    assert missing == set()
    assert attributes_of(RequestResponseCycle) >= OF_THE_CYCLE
    assert attributes_of(ServerState) >= OF_THE_STATE


def test_all_that_is_used_is_listed() -> None:
    (cls,) = (
        node
        for node in ast.parse(inspect.getsource(protocol)).body
        if isinstance(node, ast.ClassDef) and node.name == "GuardedProtocol"
    )
    used = {
        node.attr
        for node in ast.walk(cls)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    public = {name for name in used if not name.startswith("_")} - OTHERS
    assert public <= listed()
    assert listed() >= OF_THE_CYCLE | OF_THE_STATE
