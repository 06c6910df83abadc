"""GET /agreement: what the shadow comparison has found of late."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from service.routes.dependencies import ServiceDep

router = APIRouter(tags=["observability"])


@router.get("/agreement", summary="How well int8 agrees with fp32 on live requests")
def agreement(service: ServiceDep) -> dict[str, Any]:
    """Summarize, for each task, the last comparisons of sampled requests (`--shadow-rate`) and show the worst of them.

    `agreement` is the share of inputs for which both backends put the same label first or found the very same span,
    with its 95 % interval (Wilson); `abs_diff` the differences of scores; `span_f1` the F1 of the spans' words. The
    worst cases name request ids, labels, scores, offsets and lengths; texts only where the operator wants them.
    """
    shadow = service.shadow
    return {
        "shadow_rate": shadow.rate,
        "window": f"the last {shadow.agreement.window} comparisons of each task",
        "waiting": shadow.waiting(),
        "dropped": shadow.dropped(),
        "tasks": shadow.agreement.describe(),
    }
