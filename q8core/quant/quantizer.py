"""What a quantizer is, as data: bits, grid, granularity, rule and gradient, of one weight, input or output.

Source of the words: Q8BERT (Zafrir et al., 2019) for the rules; the axes are those of METHODS that differ from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from q8core.errors import SchemeError

Grid = Literal["symmetric", "asymmetric"]
Granularity = Literal["tensor", "channel", "token"]
Rule = Literal["max", "ema"]
Gradient = Literal["straight_through"]

LEAST_BITS, MOST_BITS = 2, 8


@dataclass(frozen=True)
class Quantizer:
    """How one tensor becomes integers.

    Attributes:
        bits: of an integer, 2 to 8.
        grid: "symmetric" around 0, from -(2^(b-1) - 1) to 2^(b-1) - 1; or "asymmetric", 2^b values with a zero point
            between the smallest and the largest that is seen.
        granularity: one scale for the "tensor", for each "channel" (an output row of a weight, a row of a table), or
            for each "token" when it is there (dynamic).
        rule: where the range comes from: "max", the largest magnitude of the tensor itself; "ema", a moving average of
            that over the batches of training, or what calibration finds.
        gradient: what the rounding passes back in training.
        smoothing: of an input with one fixed scale: its columns are divided, and the weight's multiplied, by
            max|x|^smoothing / max|w|^(1 - smoothing) of each column before both are quantized (SmoothQuant, Xiao et
            al., 2023, where it is alpha); 0 leaves both as they are.
    """

    bits: int = 8
    grid: Grid = "symmetric"
    granularity: Granularity = "tensor"
    rule: Rule = "max"
    gradient: Gradient = "straight_through"
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not LEAST_BITS <= self.bits <= MOST_BITS:
            raise SchemeError(f"bits is {self.bits}; allowed: {LEAST_BITS} to {MOST_BITS}")
        if not 0 <= self.smoothing <= 1:
            raise SchemeError(f"smoothing is {self.smoothing}; allowed: 0 (none) to 1")

    @property
    def largest(self) -> int:
        """The largest integer of a symmetric grid."""
        return 2 ** (self.bits - 1) - 1


PER_CHANNEL = Quantizer(granularity="channel")
STATIC = Quantizer(rule="ema")
"""One range that training or calibration fixes."""
PER_TOKEN = Quantizer(granularity="token")
