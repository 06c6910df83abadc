"""GET /info: what is loaded, how it was made, which kernels run it, and the limits."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from service.http.routes.dependencies import ServiceDep
from service.operations.info import describe_service

router = APIRouter(tags=["observability"])


@router.get("/info", summary="Models, backends, kernels, limits and versions")
def info(service: ServiceDep) -> dict[str, Any]:
    """Describe the running service."""
    return describe_service(service)
