"""``backend=auto``: int8 answers first, and fp32 answers again where int8 was not sure.

int8 is not sure if its margin (see `service.tasks.verdict`) is below a threshold. ``q8bert compare --target-agreement``
chooses the threshold from data and writes it to a small JSON file, which is valid only for the int8 weights that it was
made with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field

from q8core.documents import parse_strict_json, shown, validated_json
from q8core.errors import InputError
from q8core.tasks.agreement import wilson_interval
from q8core.text_file import read_text
from service.errors import UnknownBackend
from service.models.registry import Model
from service.second_opinion.compare import FLOAT, INTEGER
from service.tasks.verdict import Verdict

FIRST, SECOND = INTEGER, FLOAT
FORMAT_VERSION = 1
_HOW = (
    "calibrate it with `q8bert compare --file REQUESTS.jsonl --checkpoint PATH --target-agreement 0.999 "
    "--cascade FILE` and start with `q8bert serve --cascade FILE`"
)


@dataclass(frozen=True)
class Calibration:
    """A threshold for one model, and its effect on the data that it was chosen from."""

    checkpoint: str
    revision: str
    """Revision of the int8 weights, as in /info."""
    task: str
    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """fp32 answers where int8's margin is below; 0: never."""
    target_agreement: float
    inputs: int
    int8_agreement: float
    """Share of the inputs on which int8 alone agrees with fp32."""
    agreement: float
    """The same with the cascade; at least the target."""
    agreement_ci95: tuple[float, float]
    escalated: float
    """Share of the inputs that fp32 answers."""


def choose_threshold(margins: Sequence[float], agree: Sequence[bool], target: float) -> float:
    """Find the smallest threshold with which the agreement is at least ``target``.

    Inputs with a margin below the threshold are answered by fp32, and so agree. Of the inputs that disagree, those with
    the largest margins stay: as many as the target allows.

    Args:
        margins: int8's margin on each input.
        agree: whether int8 agrees with fp32 there.
        target: wanted agreement, a share of the inputs from 0 to 1.
    """
    total = len(margins)
    wrong = sorted((m for m, same in zip(margins, agree, strict=True) if not same), reverse=True)
    # first an upper bound, for rounding, then exactly as the result is checked: (total - k) / total >= target
    allowed = min(len(wrong), math.floor((1 - target) * total) + 1)
    while allowed and (total - allowed) / total < target:
        allowed -= 1
    # just above the largest margin that must be answered by fp32
    return 0.0 if allowed == len(wrong) else math.nextafter(wrong[allowed], math.inf)


def calibrate(model: Model, margins: Sequence[float], agree: Sequence[bool], target: float) -> Calibration:
    """Choose a model's threshold from compared inputs.

    Raises:
        InputError: no input, a target outside 0..1, or a model that predicts a number and so has no margin.
    """
    if not 0 < target <= 1:
        raise InputError(f"the target agreement is {target:g}; above 0, at most 1")
    if model.checkpoint.problem_type == "regression":
        raise InputError(f"{model.name} predicts a number: it has no margin to choose by, and cannot have a cascade")
    if not margins:
        raise InputError(f"no input for {model.name} ({model.checkpoint.task}) to choose a threshold from")
    threshold = choose_threshold(margins, agree, target)
    total = len(margins)
    kept = [same for margin, same in zip(margins, agree, strict=True) if margin >= threshold]
    agreed = total - len(kept) + sum(kept)
    return Calibration(
        checkpoint=model.name,
        revision=model.revision,
        task=model.checkpoint.task,
        threshold=threshold,
        target_agreement=target,
        inputs=total,
        int8_agreement=sum(agree) / total,
        agreement=agreed / total,
        agreement_ci95=wilson_interval(agreed, total),
        escalated=(total - len(kept)) / total,
    )


def write_calibrations(file: Path, calibrations: Sequence[Calibration]) -> None:
    """Write what `Cascade.read` reads."""
    content = {"format_version": FORMAT_VERSION, "calibrations": [asdict(one) for one in calibrations]}
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class Cascade:
    """The thresholds of the models that have one.

    Args:
        calibrations: the thresholds; each is looked up by the revision of its int8 weights.
    """

    def __init__(self, calibrations: Sequence[Calibration] = ()) -> None:
        self._by_revision = {one.revision: one for one in calibrations}

    @classmethod
    def read(cls, file: Path, models: Sequence[Model]) -> Cascade:
        """Read thresholds from a file and check that they are for the models that are served.

        Raises:
            InputError: the file is not one of thresholds, or was made with other weights.
        """
        found = _read_calibrations(file)
        revisions = {model.revision for model in models}
        names = {model.name: model.revision for model in models}
        for one in found:
            if one.revision not in revisions and one.checkpoint in names:
                raise InputError(
                    f"{file} was calibrated with revision {one.revision} of {one.checkpoint}, revision "
                    f"{names[one.checkpoint]} is served; calibrate again: {_HOW}"
                )
        if not any(one.revision in revisions for one in found):
            shown = ", ".join(one.checkpoint for one in found) or "no checkpoint"
            raise InputError(f"{file} is for {shown}; served are {', '.join(names)}")
        return cls([one for one in found if one.revision in revisions])

    @property
    def calibrations(self) -> tuple[Calibration, ...]:
        """All thresholds in use."""
        return tuple(self._by_revision.values())

    def check(self, model: Model) -> None:
        """Raise UnknownBackend for a model without a threshold."""
        if model.revision not in self._by_revision:
            raise UnknownBackend(
                f"backend auto needs a threshold for {model.name} ({model.checkpoint.task}), and there is none; {_HOW}"
            )

    def weak(self, model: Model, verdicts: Sequence[Verdict]) -> list[int]:
        """Return the indices of the inputs for fp32 to answer, given int8's verdicts on all."""
        threshold = self._by_revision[model.revision].threshold
        return [place for place, verdict in enumerate(verdicts) if verdict.margin < threshold]


@dataclass(frozen=True)
class _File:
    format_version: int
    calibrations: list[Calibration]


def _read_calibrations(file: Path) -> list[Calibration]:
    text = read_text(file)
    content = parse_strict_json(text, file)
    version = cast("dict[str, Any]", content).get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(f"{file}: format_version is {shown(version)}; this release reads {FORMAT_VERSION}")
    return validated_json(_File, text, f"{file} is not a file of `q8bert compare --cascade`").calibrations
