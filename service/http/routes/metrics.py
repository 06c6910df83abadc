"""GET /metrics: Prometheus text, or OpenMetrics where the scraper asks for it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Response
from prometheus_client.exposition import choose_encoder

from service.http.routes.dependencies import ServiceDep

router = APIRouter(tags=["observability"])


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
def metrics(service: ServiceDep, accept: Annotated[str, Header()] = "") -> Response:
    """Render every metric."""
    encode, content_type = choose_encoder(accept)
    return Response(encode(service.exposed), media_type=content_type)
