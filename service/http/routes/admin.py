"""/admin/models: load, swap and unload models; exists only if an admin key is set, and needs it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from service.http.routes.dependencies import ServiceDep, error_responses
from service.models.model import Model
from service.models.registry import ModelRegistry
from service.operations.info import describe_model
from service.operations.model_admin import ModelAdmin
from service.settings import MODEL_NAME
from service.tasks.strict import StrictModel, Text

router = APIRouter(prefix="/admin/models", tags=["admin"])


def _admin(request: Request) -> ModelAdmin:
    return request.app.state.admin


AdminDep = Annotated[ModelAdmin, Depends(_admin)]


def _no_null(path: str) -> str:
    if "\0" in path:
        raise ValueError("a path holds no null character")
    return path


class LoadRequest(StrictModel):
    """A checkpoint, and the name to serve it under."""

    path: Annotated[Text, StringConstraints(min_length=1, max_length=4096), AfterValidator(_no_null)] = Field(
        description="Folder of the checkpoint below one of --model-root, absolute or relative to it."
    )
    name: Annotated[str, StringConstraints(pattern=f"^{MODEL_NAME.pattern}$")] | None = Field(
        default=None, description="A loaded model's name swaps it. Default: the checkpoint's own."
    )


class ModelState(BaseModel):
    """One model in the service."""

    name: str
    task: str
    revision: str
    path: str
    default: bool = Field(description="Whether it answers its task's requests that name no model.")
    state: Literal["serving", "retiring"] = Field(description="Retiring: it only ends the requests that it has.")
    requests: int = Field(description="Requests that hold it now.")


class ModelList(BaseModel):
    """All models in memory."""

    models: list[ModelState]


class LoadAnswer(BaseModel):
    """The result of a load."""

    name: str
    replaced: str | None = Field(description="Revision of the model that it replaces; null: the name is new.")
    model: dict[str, Any] = Field(description="As in /info.")


@router.get("", responses=error_responses(401), summary="Models and how many requests hold each")
async def list_models(service: ServiceDep) -> ModelList:
    """List the serving models, and replaced ones that still answer the requests they have."""
    registry = service.registry
    serving = [_state(registry, model, "serving") for model in registry.models.values()]
    return ModelList(models=serving + [_state(registry, model, "retiring") for model in registry.retired])


@router.post(
    "",
    responses={
        201: {"model": LoadAnswer, "description": "Serves under a new name."},
        **error_responses(400, 401, 403, 408, 409, 413, 415, 422, 500, 503, admin=True),
    },
    summary="Load a model, or swap the one of its name",
)
async def load_model(body: LoadRequest, admin: AdminDep, response: Response) -> LoadAnswer:
    """Verify, load, self-test and warm up a checkpoint while the others serve, then route new requests to it.

    Answers when it serves, which takes seconds. If anything fails, nothing changes and the answer says why.
    """
    swap = await admin.load(body.path, body.name)
    if swap.replaced is None:
        response.status_code = 201
    replaced = swap.replaced.revision if swap.replaced else None
    return LoadAnswer(name=swap.model.name, replaced=replaced, model=describe_model(swap.model))


@router.delete("/{name:path}", responses=error_responses(401, 404, 409, admin=True), summary="Unload a model")
async def unload_model(name: str, admin: AdminDep) -> ModelList:
    """Give a model no more requests; once it has answered those it has, its memory is freed.

    Unloading a task's default makes the task's next model the default; if there is none, the task answers 404. A model
    that answers again for another one (`--cascade`) is unloaded after that one.
    """
    return ModelList(models=[_state(admin.registry, admin.unload(name), "retiring")])


def _state(registry: ModelRegistry, model: Model, state: Literal["serving", "retiring"]) -> ModelState:
    return ModelState(
        name=model.name,
        task=model.task,
        revision=model.revision,
        path=str(model.checkpoint.path),
        default=state == "serving" and registry.choose(model.task) is model,
        state=state,
        requests=registry.uses(model),
    )
