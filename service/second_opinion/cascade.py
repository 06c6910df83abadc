"""``backend=auto``: int8 answers first, and a second variant answers again where int8 was not sure.

The second is fp32 of the same model, or another model, as after one of few bits. int8 is not sure if its margin (see
`service.tasks.verdict`) is below a threshold. ``q8bert compare --target-agreement`` chooses the threshold from data and
writes it to a small JSON file, which is valid only for the weights that it was made with.
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
from service.errors import BadInput, UnknownBackend
from service.models.registry import Model, ModelRegistry
from service.models.variant import SEPARATOR, Variant
from service.second_opinion.compare import BACKENDS, FLOAT, INTEGER, check_comparable
from service.tasks.verdict import Verdict

FIRST = INTEGER
FORMAT_VERSION = 1
_HOW = (
    "calibrate it with `q8bert compare --file REQUESTS.jsonl --checkpoint PATH --target-agreement 0.999 "
    "--cascade FILE` and start with `q8bert serve --cascade FILE`"
)


@dataclass(frozen=True)
class Calibration:
    """A threshold for one model, and its effect on the data that it was chosen from.

    What "agrees" is measured against is the variant that answers again.
    """

    checkpoint: str
    revision: str
    """Revision of the int8 weights, as in /info."""
    task: str
    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """The second answers where int8's margin is below; 0: never."""
    target_agreement: float
    inputs: int
    int8_agreement: float
    """Share of the inputs on which int8 alone agrees with the second."""
    agreement: float
    """The same with the cascade; at least the target."""
    agreement_ci95: tuple[float, float]
    escalated: float
    """Share of the inputs that the second answers."""
    second: Annotated[str, Field(pattern=rf"^.+{SEPARATOR}({'|'.join(BACKENDS)})$")] | None = None
    """What answers again, as MODEL@BACKEND; None: fp32 of the same model."""
    second_revision: str | None = None
    """Revision of its model's int8 weights, by which the model is found, whatever it is called where it is served."""


def choose_threshold(margins: Sequence[float], agree: Sequence[bool], target: float) -> float:
    """Find the smallest threshold with which the agreement is at least ``target``.

    Inputs with a margin below the threshold are answered by the second variant, and so agree. Of the inputs that
    disagree, those with the largest margins stay: as many as the target allows.

    Args:
        margins: int8's margin on each input.
        agree: whether int8 agrees with the second there.
        target: wanted agreement, a share of the inputs from 0 to 1.
    """
    total = len(margins)
    wrong = sorted((m for m, same in zip(margins, agree, strict=True) if not same), reverse=True)
    # first an upper bound, for rounding, then exactly as the result is checked: (total - k) / total >= target
    allowed = min(len(wrong), math.floor((1 - target) * total) + 1)
    while allowed and (total - allowed) / total < target:
        allowed -= 1
    # just above the largest margin that must be answered by the second
    return 0.0 if allowed == len(wrong) else math.nextafter(wrong[allowed], math.inf)


def calibrate(
    model: Model, margins: Sequence[float], agree: Sequence[bool], target: float, second: Variant | None = None
) -> Calibration:
    """Choose a model's threshold from compared inputs.

    Args:
        model: the model that answers first.
        margins: as in `choose_threshold`.
        agree: as in `choose_threshold`.
        target: as in `choose_threshold`.
        second: the variant that answers again, if that is another model's.

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
        second=second and second.name,
        second_revision=second and second.model.revision,
    )


def write_calibrations(file: Path, calibrations: Sequence[Calibration]) -> None:
    """Write what `Cascade.read` reads."""
    content = {"format_version": FORMAT_VERSION, "calibrations": [asdict(one) for one in calibrations]}
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class Cascade:
    """The thresholds of the models that have one, and the variants that answer again.

    Args:
        registry: the served models, which may change.
        calibrations: the thresholds; each is looked up by the revision of its int8 weights.
    """

    def __init__(self, registry: ModelRegistry, calibrations: Sequence[Calibration] = ()) -> None:
        self._registry = registry
        self._by_revision = {one.revision: one for one in calibrations}

    @classmethod
    def read(cls, file: Path, registry: ModelRegistry) -> Cascade:
        """Read thresholds from a file and check that they are for the models that are served.

        Raises:
            InputError: the file is not one of thresholds, was made with other weights, or names a second variant that
                is not served or answers with other labels.
        """
        found = _read_calibrations(file)
        if FIRST not in registry.backends:
            raise InputError(f"{file}: {FIRST} answers first, and the backends are {', '.join(registry.backends)}")
        models = tuple(registry.models.values())
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
        cascade = cls(registry, [one for one in found if one.revision in revisions])
        for model in models:
            if cascade.of(model) is not None:
                try:
                    cascade.second(model)
                except UnknownBackend as error:
                    raise InputError(f"{file}: {error}") from error
        return cascade

    @property
    def calibrations(self) -> tuple[Calibration, ...]:
        """All thresholds in use."""
        return tuple(self._by_revision.values())

    def of(self, model: Model) -> Calibration | None:
        """Return a model's threshold, or None if it has none."""
        return self._by_revision.get(model.revision)

    def second(self, model: Model) -> Variant:
        """Return the variant that answers again what int8 of this model is not sure of.

        Raises:
            UnknownBackend: the model has no threshold, or that variant is not served, with the weights and the labels
                with which the threshold was calibrated.
        """
        one = self.of(model)
        if one is None:
            raise UnknownBackend(
                f"backend auto needs a threshold for {model.name} ({model.checkpoint.task}), and there is none; {_HOW}"
            )
        chosen, backend = self._answers_again(model, one), _backend_of(one)
        if backend not in self._registry.backends:
            loaded = ", ".join(self._registry.backends)
            raise UnknownBackend(f"backend auto of {model.name} needs {backend}, too; loaded: {loaded}")
        if chosen is model and backend == FLOAT:
            return Variant(model, FLOAT, FLOAT)
        found = Variant(chosen, backend, f"{chosen.name}{SEPARATOR}{backend}")
        try:
            check_comparable(Variant(model, FIRST, f"{model.name}{SEPARATOR}{FIRST}"), found)
        except BadInput as error:
            raise UnknownBackend(f"backend auto of {model.name} is not possible: {error}") from error
        return found

    def served_second(self, model: Model) -> Variant | None:
        """Return what `second` returns, or None where it refuses."""
        try:
            return self.second(model)
        except UnknownBackend:
            return None

    def users(self, model: Model) -> list[str]:
        """Return the names of the other models whose inputs this one answers again."""
        found: list[str] = []
        for first in self._registry.of_task(model.task):
            one = self.of(first)
            if one is not None and first is not model and one.second_revision == model.revision:
                found.append(first.name)
        return found

    def weak(self, model: Model, verdicts: Sequence[Verdict]) -> list[int]:
        """Return the indices of the inputs for the second to answer, given int8's verdicts on all."""
        threshold = self._by_revision[model.revision].threshold
        return [place for place, verdict in enumerate(verdicts) if verdict.margin < threshold]

    def _answers_again(self, model: Model, one: Calibration) -> Model:
        """Return the model that answers again: by its weights, and of several with these by its name."""
        if one.second is None:
            return model
        name = one.second.rpartition(SEPARATOR)[0]
        same = [each for each in self._registry.of_task(model.task) if each.revision == one.second_revision]
        if same:
            return next((each for each in same if each.name == name), same[0])
        served = self._registry.models.get(name)
        instead = f"it is served with revision {served.revision}" if served else "it is not served"
        raise UnknownBackend(
            f"backend auto of {model.name} needs {one.second} with revision {one.second_revision}, as calibrated, to "
            f"answer again, and {instead}; serve it too, or {_HOW}"
        )


def _backend_of(one: Calibration) -> str:
    return FLOAT if one.second is None else one.second.rpartition(SEPARATOR)[2]


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
    found = validated_json(_File, text, f"{file} is not a file of `q8bert compare --cascade`").calibrations
    for one in found:
        if (one.second is None) != (one.second_revision is None):
            raise InputError(
                f"{file}: second is {one.second} and second_revision is {one.second_revision} for {one.checkpoint}: "
                f"both, or none; {_HOW}"
            )
    return found
