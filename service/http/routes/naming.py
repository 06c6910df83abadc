"""Looking up models by the name that a client gives."""

from __future__ import annotations

from service.core import Service
from service.errors import UnknownModel
from service.models.registry import Model


def named_model(service: Service, task: str | None, name: str | None) -> Model:
    """Return the model of this name and task; None: any.

    Raises:
        NotReady: models are still loading, or the service is shutting down.
        UnknownModel: there is no such model.
    """
    service.pipeline.check_ready()
    registry = service.registry
    if task is not None:
        return registry.choose(task, name)
    loaded = registry.models
    model = next(iter(loaded.values()), None) if name is None else loaded.get(name)
    if model is None:
        what = "no model is loaded" if name is None else f"unknown model {name!r}"
        raise UnknownModel(f"{what}; loaded: {', '.join(loaded) or 'none'}")
    return model
