"""From records of schemes to the lines of their table: bits, sizes, scores, times and the papers' claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from q8core.checkpoint import Checkpoint
from q8core.checkpoint.config import ModelConfig
from q8core.quant import Plan, Scheme, preset
from q8core.quant.bits import FLOAT_BITS, Bits, bits_of
from q8core.reproduce.claims import claim_of
from q8core.reproduce.record import FP32, RunRecord
from q8core.reproduce.scheme_speed import Speed
from q8core.reproduce.summary import Cell, metrics_of, summarize

_FLOAT = Bits(FLOAT_BITS, FLOAT_BITS, FLOAT_BITS, mixed=False)


@dataclass(frozen=True)
class SchemeLine:
    """A scheme on a task.

    Attributes:
        task: the task.
        scheme: the scheme's name; `fp32` for the float model.
        bits: its bits.
        file_bytes: size of the file of its weights.
        resident_bytes: of the loaded engine's weights; None before they are measured.
        compression: size of the float model's file divided by this one's.
        cells: metric -> its scores.
        times: shape -> reference -> its time divided by the reference's.
        claim: what papers claim beside it.
    """

    task: str
    scheme: str
    bits: Bits
    file_bytes: int
    resident_bytes: int | None
    compression: float
    cells: Mapping[str, Cell]
    times: Mapping[str, Mapping[str, float]]
    claim: str

    @property
    def cell(self) -> Cell:
        """The scores of the task's first metric."""
        return self.cells[metrics_of(self.task)[0]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "bits_text": str(self.bits)}


def scheme_lines(
    task: str,
    fine_tuned: Sequence[RunRecord],
    of_schemes: Sequence[RunRecord],
    order: Sequence[str],
    speed: Speed | None,
    config: ModelConfig,
) -> list[SchemeLine]:
    """Return the lines of a task's table: the float model, then each scheme that has scores.

    Args:
        task: the task.
        fine_tuned: the records of its fine-tuned models.
        of_schemes: the records of its schemes.
        order: names of schemes in the order of the command; those of earlier commands follow.
        speed: the measurements, if there are any.
        config: the config of the base model.
    """
    scored = {name: each for each in of_schemes for name in each.scores}
    if not scored:
        return []
    names = [name for name in dict.fromkeys((*order, *scored)) if name in scored]
    rows = {row.metric: row.cells for row in summarize(_joined(fine_tuned, of_schemes))}
    whole = next(iter(scored.values())).file_bytes[FP32]
    sizes = {FP32: whole, **{name: scored[name].file_bytes[name] for name in names}}
    return [
        SchemeLine(
            task,
            name,
            _FLOAT if name == FP32 else _bits(scored[name], config),
            size,
            None if speed is None else speed.resident.get(name),
            whole / size,
            {metric: cells[name] for metric, cells in rows.items()},
            {} if speed is None else {shape: ratios.get(name, {}) for shape, ratios in speed.ratios.items()},
            claim_of(name, task),
        )
        for name, size in sizes.items()
    ]


def _joined(fine_tuned: Sequence[RunRecord], of_schemes: Sequence[RunRecord]) -> list[RunRecord]:
    """Return for each seed one record with the scores of the float model and of all schemes."""
    joined: list[RunRecord] = []
    for record in fine_tuned:
        scores = {FP32: record.scores[FP32]} if FP32 in record.scores else {}
        for scheme in of_schemes:
            if scheme.seed == record.seed:
                scores |= scheme.scores
        joined.append(replace(record, scores=scores))
    return joined


def _bits(record: RunRecord, config: ModelConfig) -> Bits:
    asked = record.identity["scheme"]
    if asked == FP32:  # a stage in float
        return _FLOAT
    scheme = preset(asked) if isinstance(asked, str) else Scheme.from_dict(asked)
    if scheme.average_bits is not None:
        chosen = Checkpoint.open(record.checkpoint).scheme
        assert chosen is not None
        scheme = chosen
    return bits_of(Plan.of(config.spec, config.head("qa" if record.task == "squad" else "classify"), scheme))
