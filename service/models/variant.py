"""A variant of a task: one model on one of its backends, ``MODEL@BACKEND`` in requests."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from q8core.errors import InputError
from service.errors import BadInput, InputTooLong, TooManyTokens, UnknownBackend, UnknownModel
from service.models.model import LoadedEngine, Model
from service.models.registry import ModelRegistry
from service.queueing.batcher import Lane

SEPARATOR = "@"


@dataclass(frozen=True)
class Variant:
    """One model on one of its backends.

    Attributes:
        model: the model.
        backend: the backend.
        shown_as: its name in a comparison.
    """

    model: Model
    backend: str
    shown_as: str

    @property
    def name(self) -> str:
        """``MODEL@BACKEND``."""
        return f"{self.model.name}{SEPARATOR}{self.backend}"

    @property
    def lane(self) -> Lane:
        """The lane of its engine."""
        return self.model.lane(self.backend)

    @property
    def loaded(self) -> LoadedEngine:
        """Its engine."""
        return self.model.engines[self.backend]


def find_variant(registry: ModelRegistry, task: str, name: str) -> Variant:
    """Return the variant of a task with this name.

    Raises:
        UnknownModel: no such model is loaded for the task, or the name is not ``MODEL@BACKEND``.
        UnknownBackend: no such backend is loaded.
    """
    model, found, backend = name.rpartition(SEPARATOR)
    if not found:
        own = registry.of_task(task)
        known = ", ".join(f"{each.name}{SEPARATOR}{backend}" for each in own for backend in registry.backends)
        raise UnknownModel(f"unknown variant {name!r}; a variant is MODEL{SEPARATOR}BACKEND, loaded: {known or 'none'}")
    chosen = registry.choose(task, model)
    check_backend(registry, backend)
    return Variant(chosen, backend, name)


def check_backend(registry: ModelRegistry, backend: str) -> None:
    """Raise UnknownBackend unless the backend is loaded."""
    if backend not in registry.backends:
        raise UnknownBackend(f"unknown backend {backend!r}; loaded: {', '.join(registry.backends)}")


@contextmanager
def named_errors(variant: Variant) -> Generator[None]:
    """Name the variant in errors about what its model cannot read, for requests that asked for another one."""
    try:
        yield
    except (BadInput, InputTooLong, TooManyTokens) as error:
        raise type(error)(f"{variant.shown_as}: {error}") from error
    except InputError as error:
        raise BadInput(f"{variant.shown_as}: {error}") from error
