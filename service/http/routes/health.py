"""Probes: /livez fails if a restart would help, /readyz (and /health) if no requests should be sent."""

from __future__ import annotations

from fastapi import APIRouter

from service.errors import EngineDead
from service.http.routes.dependencies import ServiceDep, error_responses
from service.tasks.schemas import Health

router = APIRouter(tags=["health"])


@router.get("/livez", responses=error_responses(503), summary="Alive: a restart is not needed")
async def livez(service: ServiceDep) -> Health:
    """Answer 200 while loading, ready or draining; 503 when the engine has died or hangs."""
    problem = service.engine_problem()
    if problem is not None:
        raise EngineDead(problem)
    return Health(status="alive")


@router.get("/readyz", responses=error_responses(503), summary="Ready: requests are answered")
@router.get("/health", responses=error_responses(503), summary="Alias of /readyz")
async def readyz(service: ServiceDep) -> Health:
    """Answer 200 only from a passed self-test until shutdown begins."""
    problem = service.engine_problem()
    if problem is not None:
        raise EngineDead(problem)
    service.pipeline.check_ready()
    return Health(status="ready")
