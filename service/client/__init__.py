"""A small client of the service, sync and async, that imports nothing of the server."""

from __future__ import annotations

from service.client.asynchronous import AsyncClient
from service.client.errors import ClientError
from service.client.results import Answer, Classification, Comparison, Info, Label, Meta, Share
from service.client.retries import Retry
from service.client.synchronous import Client

__all__ = [
    "Answer",
    "AsyncClient",
    "Classification",
    "Client",
    "ClientError",
    "Comparison",
    "Info",
    "Label",
    "Meta",
    "Retry",
    "Share",
]
