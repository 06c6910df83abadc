"""POST /compare: one text, or one question with its context, answered by fp32 and int8, or by two models."""

from __future__ import annotations

from fastapi import APIRouter

from service.http.routes.dependencies import INFERENCE_ERRORS, ServiceDep, TraceDep, error_responses
from service.tasks.schemas import CompareRequest, CompareResponse

router = APIRouter(tags=["inference"])


@router.post("/compare", responses=error_responses(*INFERENCE_ERRORS), summary="Ask two backends or models the same")
async def compare(body: CompareRequest, service: ServiceDep, trace: TraceDep) -> CompareResponse:
    """Answer a text (as /classify does) or a question with its context (as /qa does) on both backends of a model.

    `variants` names any two loaded models and backends instead, such as `sst2-w4@int8` and `sst2@fp32`. They run one
    after the other, because at the same time they would compete for the CPUs. Which of them runs first, and so wakes
    the CPUs, alternates from request to request. Parameters are the defaults of /classify and /qa. The times in the
    headers are sums over both.
    """
    return await service.pipeline.compare(body, trace)
