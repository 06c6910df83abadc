"""POST /classify: Hugging Face's text-classification task."""

from __future__ import annotations

from fastapi import APIRouter

from service.http.routes.dependencies import INFERENCE_ERRORS, BackendHeader, ServiceDep, TraceDep, error_responses
from service.tasks.schemas import ClassifyRequest, ClassifyResponse

router = APIRouter(tags=["inference"])


@router.post("/classify", responses=error_responses(*INFERENCE_ERRORS), summary="Classify texts or pairs of texts")
async def classify(
    body: ClassifyRequest, service: ServiceDep, trace: TraceDep, backend: BackendHeader = None
) -> ClassifyResponse:
    """Return one list of labels, best first, for each input; a single text gets a list of one."""
    return await service.pipeline.classify(body, backend, trace)
