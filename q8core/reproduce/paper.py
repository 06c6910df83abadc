"""The results in the Q8BERT paper (Zafrir et al., 2019): mean and standard deviation on the dev sets, in percent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class PaperScore(NamedTuple):
    """Mean and standard deviation as printed in the paper."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class PaperRow:
    """A line of the paper's table.

    Attributes:
        model: BERT-base or BERT-large, uncased.
        fp32: fine-tuned in float.
        qat: quantization-aware training, simulated in float.
        dynamic: "DQ", post-training dynamic quantization, simulated in float.
    """

    model: str
    fp32: PaperScore
    qat: PaperScore
    dynamic: PaperScore


def _row(model: str, *numbers: float) -> PaperRow:
    scores = [PaperScore(mean, deviation) for mean, deviation in zip(numbers[::2], numbers[1::2], strict=True)]
    return PaperRow(f"BERT-{model}", *scores)


PAPER: dict[str, tuple[PaperRow, ...]] = {
    "cola": (_row("base", 58.48, 1.54, 58.48, 1.32, 56.74, 0.61),),
    "mrpc": (
        _row("base", 90.00, 0.23, 89.56, 0.18, 87.88, 2.03),
        _row("large", 90.86, 0.55, 90.90, 0.29, 88.18, 2.19),
    ),
    "qnli": (
        _row("base", 90.30, 0.44, 90.62, 0.29, 89.34, 0.61),
        _row("large", 91.66, 0.15, 91.74, 0.36, 88.38, 2.22),
    ),
    "qqp": (_row("base", 87.84, 0.19, 87.96, 0.35, 84.98, 0.97),),
    "rte": (_row("base", 69.70, 1.50, 68.78, 3.52, 63.32, 4.58),),
    "sst2": (_row("base", 92.36, 0.59, 92.24, 0.27, 91.04, 0.43),),
    "stsb": (
        _row("base", 89.62, 0.31, 89.04, 0.17, 87.66, 0.41),
        _row("large", 90.34, 0.21, 90.12, 0.13, 83.04, 5.71),
    ),
    "squad": (_row("base", 88.46, 0.15, 87.74, 0.15, 80.02, 2.38),),
}
"""Results by task, on the metric that is also the first in our list."""
