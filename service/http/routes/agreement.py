"""GET /agreement: the latest results of the shadow comparison."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from service.http.routes.dependencies import ServiceDep

router = APIRouter(tags=["observability"])


class Lengths(BaseModel):
    """The length of one input."""

    tokens: int
    sequences: int = Field(description="Texts or windows that were computed.")
    characters: dict[str, int] = Field(description="Of each text, by its name in the request.")


class WorstCase(BaseModel):
    """One input that both backends have answered; without its text, unless the operator wants texts."""

    request_id: str
    input: int = Field(description="Which input of the request, from 0.")
    agree: bool | None = Field(description="null: the model predicts a number.")
    abs_diff: float
    span_f1: float | None = Field(default=None, description="Of spans only.")
    int8_margin: float = Field(description="By how much int8 preferred its answer to any other.")
    answers: dict[str, Any] = Field(
        description="By backend: the best labels with scores, or the span's place and score."
    )
    lengths: Lengths
    texts: dict[str, str] | None = Field(default=None, description="Only with --shadow-texts.")


class ModelAgreement(BaseModel):
    """The latest comparisons of one loaded model; a swapped model starts with none."""

    task: str
    revision: str = Field(description="Of the weights, as in /info.")
    compared: int
    agreed: int | None = Field(
        description="The same label first, or the very same span; null: the model predicts a number."
    )
    agreement: float | None = Field(description="Share of them; null: nothing was compared, or numbers.")
    agreement_ci95: tuple[float, float] | None = Field(description="Its 95 % interval (Wilson).")
    abs_diff: dict[str, float] | None = Field(description="Differences of scores: mean, p50, p90, p99, max.")
    span_f1: dict[str, float] | None = Field(
        default=None, description="F1 of the spans' words: mean, p1, p10, min. Of spans only."
    )
    since: str | None = Field(description="Time of the oldest of them.")
    worst: list[WorstCase] = Field(description="The worst first.")


class AgreementAnswer(BaseModel):
    """The results of the shadow comparison, and how many samples were dropped."""

    shadow_rate: float = Field(description="Share of the answered requests that is sampled.")
    window: str
    waiting: int = Field(description="Sampled requests that wait for an idle moment.")
    dropped: dict[str, int] = Field(description="Sampled requests that were not compared since start, by reason.")
    models: dict[str, ModelAgreement] = Field(description="By name.")


@router.get("/agreement", response_model_exclude_unset=True, summary="How well int8 agrees with fp32 on live requests")
def agreement(service: ServiceDep) -> AgreementAnswer:
    """Summarize, for each loaded model, the last comparisons of sampled requests (`--shadow-rate`) and show the worst.

    The worst cases have request ids, labels, scores, offsets and lengths; texts only if the operator wants them.
    """
    shadow = service.shadow
    return AgreementAnswer.model_validate(
        {
            "shadow_rate": shadow.rate,
            "window": f"the last {shadow.agreement.window} comparisons of each model",
            "waiting": shadow.waiting(),
            "dropped": shadow.dropped(),
            "models": shadow.agreement.describe(),
        }
    )
