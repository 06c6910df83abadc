"""POST /v1/classify: the classification API of vLLM, SGLang and Dynamo, over the same pipeline as /classify."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from q8core.special_tokens import sequence_template
from q8core.tasks.classify import Side
from service.errors import BadInput, EmptyInput
from service.http.routes.dependencies import INFERENCE_ERRORS, BackendHeader, ServiceDep, TraceDep, error_responses
from service.http.routes.naming import named_model
from service.http.routes.texts import Texts, listed
from service.models.model import Model
from service.tasks import schemas
from service.tasks.encoding import BodyWords, Cut, default_function
from service.tasks.strict import StrictModel, Text

router = APIRouter(tags=["other servers' APIs"])

_WORDS = BodyWords(inputs="input", truncate="truncate_prompt_tokens to -1")


class VllmRequest(StrictModel):
    """One text or several, in vLLM's form; token ids and chats are refused."""

    model: Text | None = Field(default=None, description="A loaded model's name; default: the served one.")
    input: Texts = Field(examples=["a gripping, beautifully acted film"])
    user: Text | None = Field(default=None, description="Not used.")
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = Field(
        default=None,
        description="Cut each text to so many tokens, special ones included, at least one of the text; -1: to what the "
        "model takes; default: answer 422 to what does not fit it.",
    )
    truncation_side: Side | None = Field(
        default=None, description="Where a text that is cut loses tokens: right (the default), its end, or left."
    )
    use_activation: bool = Field(default=True, description="false: logits instead of probabilities.")


class VllmClass(BaseModel):
    """The class of one text; ``probs`` in the order of the model's labels."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class VllmUsage(BaseModel):
    """Number of tokens, special ones included."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: Literal[0] = 0


class VllmResponse(BaseModel):
    """One class for each input."""

    id: str
    object: Literal["list"] = "list"
    created: Annotated[int, Field(description="Seconds since 1970.")]
    model: str
    data: list[VllmClass]
    usage: VllmUsage


@router.post("/v1/classify", responses=error_responses(*INFERENCE_ERRORS), summary="As vLLM's /v1/classify")
async def classify(
    body: VllmRequest, service: ServiceDep, trace: TraceDep, backend: BackendHeader = None
) -> VllmResponse:
    """Return each text's best label and the probabilities of all."""
    if body.input == []:
        raise EmptyInput("input is an empty list; send at least one text")
    model = named_model(service, "classify", body.model)
    parameters = schemas.ClassifyParameters(
        function_to_apply=default_function(model) if body.use_activation else "none",
        truncation=body.truncate_prompt_tokens is not None,
    )
    inputs: list[schemas.ClassifyInput] = [*listed(body.input)]
    request = schemas.ClassifyRequest(inputs=inputs, parameters=parameters, model=model.name)
    rows = await service.pipeline.classify(request, backend, trace, _WORDS, _cut(body, model))
    order = {label: place for place, label in enumerate(model.checkpoint.labels)}
    tokens = trace.tokens or 0
    return VllmResponse(
        id=f"classify-{trace.request_id}",
        created=int(time.time()),
        model=model.name,
        data=[_class(index, row, order) for index, row in enumerate(rows)],
        usage=VllmUsage(prompt_tokens=tokens, total_tokens=tokens),
    )


def _cut(body: VllmRequest, model: Model) -> Cut:
    """Return how to truncate; more tokens than the model takes are refused, as in vLLM."""
    tokens, most, side = body.truncate_prompt_tokens, model.max_length, body.truncation_side or "right"
    if tokens is None or tokens == -1:
        return Cut(side=side)
    fewest = sequence_template(model.tokenizer).one.specials + 1
    if not fewest <= tokens <= most:
        raise BadInput(
            f"truncate_prompt_tokens is {tokens}; allowed: {fewest} to {most} ({model.limit_text}), or -1 for that"
        )
    return Cut(tokens, side)


def _class(index: int, row: list[schemas.LabelScore], order: dict[str, int]) -> VllmClass:
    probs = [entry.score for entry in sorted(row, key=lambda entry: order[entry.label])]
    return VllmClass(index=index, label=row[0].label, probs=probs, num_classes=len(row))
