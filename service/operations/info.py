"""The facts that /info and the dry run show."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import service as package
from service.core import Service
from service.models.model import LoadedEngine, Model


def describe_service(service: Service) -> dict[str, Any]:
    """Return what an operator needs to judge numbers: models, scores, kernels, memory, limits, versions."""
    settings = service.settings
    return {
        "service": "q8bert",
        "version": package.__version__,
        "state": service.lifecycle.state.value,
        **({"worker": service.place.number, "workers": service.place.count} if service.place else {}),
        "default_backend": settings.chosen_default,
        "models": {
            model.name: {**describe_model(model), "default": place == 0}
            for task in service.registry.tasks
            for place, model in enumerate(service.registry.of_task(task))
        },
        "limits": {
            "max_batch_tokens": settings.max_batch_tokens,
            "max_queue_tokens": settings.max_queue_tokens,
            "max_queue_requests": settings.max_queue_requests,
            "request_timeout_s": settings.request_timeout_s,
            "payload_limit": settings.payload_limit,
        },
        "cascade": _describe_cascade(service),
        "shadow": {
            "rate": service.shadow.rate,
            "texts": service.shadow.with_texts,
            "max_waiting_requests": service.shadow.limits.requests,
            "max_waiting_tokens": service.shadow.limits.tokens,
            "max_waiting_characters": service.shadow.limits.characters,
            "patience_s": service.shadow.limits.patience_s,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "tokenizers", "fastapi")},
        },
    }


def _describe_cascade(service: Service) -> dict[str, Any]:
    """Return each served model's threshold, and the variant that answers again; null: it is not served any more."""
    found: dict[str, Any] = {}
    for model in service.registry.models.values():
        one = service.cascade.of(model)
        if one is not None:
            second = service.cascade.served_second(model)
            found[model.name] = {**asdict(one), "second": second and second.name}
    return found


def describe_model(model: Model) -> dict[str, Any]:
    """Return the facts about one model and its engines."""
    checkpoint, manifest = model.checkpoint, model.checkpoint.manifest
    return {
        "name": model.name,
        "task": model.task,
        "revision": model.revision,
        "labels": list(checkpoint.labels),
        "problem_type": checkpoint.problem_type,
        "max_length": model.max_length,
        "scheme": checkpoint.scheme.name if checkpoint.scheme else None,
        "bits": str(checkpoint.bits),
        "scores": manifest.scores if manifest else {},
        "training": manifest.training if manifest else {},
        "backends": {backend: _describe_engine(loaded) for backend, loaded in tuple(model.engines.items())},
    }


def _describe_engine(loaded: LoadedEngine) -> dict[str, Any]:
    return {
        **loaded.engine.describe(),
        "memory_bytes": loaded.memory_bytes,
        "selftest_max_abs_diff": loaded.selftest_max_abs_diff,
        "load_seconds": round(loaded.load_seconds, 3),
    }
