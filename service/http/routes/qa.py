"""POST /qa: Hugging Face's question-answering task, for contexts of any length."""

from __future__ import annotations

from fastapi import APIRouter

from service.http.routes.dependencies import INFERENCE_ERRORS, BackendHeader, ServiceDep, TraceDep, error_responses
from service.tasks.schemas import QARequest, QAResponse

router = APIRouter(tags=["inference"])


@router.post("/qa", responses=error_responses(*INFERENCE_ERRORS), summary="Find the answer in a context")
@router.post(
    "/question-answering", responses=error_responses(*INFERENCE_ERRORS), summary="Alias of /qa", include_in_schema=False
)
async def answer(body: QARequest, service: ServiceDep, trace: TraceDep, backend: BackendHeader = None) -> QAResponse:
    """Return a span of the context, a list of spans for `top_k` above 1, or for a list one of these per input."""
    return await service.pipeline.answer(body, backend, trace)
