"""Which model and backend answer a request: decided once, before encoding."""

from __future__ import annotations

from dataclasses import dataclass

from service.models.model import Model


@dataclass(frozen=True)
class Route:
    """The model that answers a request and the backend that was asked for, which may be ``auto``."""

    model: Model
    backend: str
