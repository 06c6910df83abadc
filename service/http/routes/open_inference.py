"""The health and metadata routes of the Open Inference Protocol, for platforms that probe and list servers with it.

Its inference route takes tensors, so it is missing; texts go to /classify and /qa.
"""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

import service as package
from service.http.routes.dependencies import ServiceDep, error_responses
from service.http.routes.health import livez, readyz
from service.http.routes.naming import named_model
from service.models.registry import Model

router = APIRouter(prefix="/v2", tags=["other servers' APIs"])


class ServerMetadata(BaseModel):
    """Name and version of this server."""

    name: Literal["q8bert"] = "q8bert"
    version: str
    extensions: list[str]


class Live(BaseModel):
    """The process does not need a restart."""

    live: Literal[True] = True


class Ready(Live):
    """Requests are answered; the protocol's specification calls this key ``live``, its other documents ``ready``."""

    ready: Literal[True] = True


class ModelReady(BaseModel):
    """The model takes requests."""

    name: str
    ready: Literal[True] = True


class Tensor(BaseModel):
    """An input or output of a model; -1 is any number."""

    name: str
    datatype: Literal["BYTES", "FP64", "INT64"]
    shape: list[int]


class ModelMetadata(BaseModel):
    """Facts about a model; its version is the beginning of its weights' digest."""

    name: str
    versions: list[str]
    platform: Literal["q8bert"] = "q8bert"
    inputs: list[Tensor]
    outputs: list[Tensor]


@router.get("", responses=error_responses(401), summary="Open Inference Protocol: the server")
async def server_metadata() -> ServerMetadata:
    """Return name and version; there are no extensions."""
    return ServerMetadata(version=package.__version__, extensions=[])


@router.get("/health/live", responses=error_responses(503), summary="Open Inference Protocol: as /livez")
async def server_live(service: ServiceDep) -> Live:
    """Answer 200, or 503 when only a restart helps."""
    await livez(service)
    return Live()


@router.get("/health/ready", responses=error_responses(503), summary="Open Inference Protocol: as /readyz")
async def server_ready(service: ServiceDep) -> Ready:
    """Answer 200 while requests are answered, else 503."""
    await readyz(service)
    return Ready()


@router.get("/models/{name}", responses=error_responses(401, 404, 422, 503), summary="Open Inference Protocol: a model")
async def model_metadata(name: str, service: ServiceDep) -> ModelMetadata:
    """Describe a loaded model."""
    model = named_model(service, None, name)
    inputs, outputs = _tensors(model)
    return ModelMetadata(name=model.name, versions=[model.revision], inputs=inputs, outputs=outputs)


@router.get(
    "/models/{name}/ready",
    responses=error_responses(401, 404, 422, 503),
    summary="Open Inference Protocol: model ready",
)
async def model_ready(name: str, service: ServiceDep) -> ModelReady:
    """Answer 200 for a loaded model while requests are answered."""
    await readyz(service)
    return ModelReady(name=named_model(service, None, name).name)


def _tensors(model: Model) -> tuple[list[Tensor], list[Tensor]]:
    if model.checkpoint.task == "qa":
        asked = [Tensor(name=name, datatype="BYTES", shape=[-1]) for name in ("question", "context")]
        places = [Tensor(name=name, datatype="INT64", shape=[-1]) for name in ("start", "end")]
        return asked, [
            Tensor(name="answer", datatype="BYTES", shape=[-1]),
            Tensor(name="score", datatype="FP64", shape=[-1]),
            *places,
        ]
    labels = len(model.checkpoint.labels)
    return (
        [Tensor(name="inputs", datatype="BYTES", shape=[-1])],
        [
            Tensor(name="label", datatype="BYTES", shape=[-1, labels]),
            Tensor(name="score", datatype="FP64", shape=[-1, labels]),
        ],
    )
