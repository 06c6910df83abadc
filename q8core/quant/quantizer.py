"""A quantizer as data: bits, grid, granularity, rule and gradient of one weight, input or output.

Source: Q8BERT (Zafrir et al., 2019) for the rules; the other fields are where other methods differ from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from q8core.errors import SchemeError

Grid = Literal["symmetric", "asymmetric", "split"]
Granularity = Literal["tensor", "channel", "group", "token"]
Rule = Literal["max", "ema", "mse", "mean", "twn", "learned", "learned_mse"]
Gradient = Literal["straight_through", "masked"]

LEAST_BITS, MOST_BITS = 1, 8


@dataclass(frozen=True)
class Quantizer:
    """How one tensor becomes integers.

    Attributes:
        bits: bits of an integer, 1 to 8.
        grid: "symmetric" around 0, from -(2^(b-1) - 1) to 2^(b-1) - 1, with one bit -1 and 1; or "asymmetric", 2^b
            values with a zero point, from the smallest to the largest value observed; or "split", the four sums of two
            signs, each with a scale of its own (2 bits).
        granularity: one scale for the "tensor", for each "channel" (an output row of a weight, a row of a table), for
            each "group" of channels that follow each other, or for each "token" at run time (dynamic).
        rule: how the range is set: "max", the largest magnitude of the tensor itself; "ema", a moving average of that
            over the training batches, or the range that calibration finds; "mse", the least squared error, which
            an input's range follows from batch to batch; "mean", of the magnitudes (1 bit, and split weights' halves);
            "twn", that of TernaryBERT (2 bits); "learned", a step that is trained as a parameter, from the one with the
            least squared error on; "learned_mse", the same, while each training step also draws it towards the least
            squared error.
        gradient: how rounding passes on the gradient in training: "straight_through", everywhere; "masked", only to
            values that are not clamped.
        smoothing: for an input with one fixed scale, the alpha of SmoothQuant (Xiao et al., 2023): before
            quantization, each column of the input is divided, and the weight's column multiplied, by
            max|x|^smoothing / max|w|^(1 - smoothing) of the column; 0 leaves both unchanged.
        groups: number of groups of a weight of granularity "group", which must divide its rows; else 0.
    """

    bits: int = 8
    grid: Grid = "symmetric"
    granularity: Granularity = "tensor"
    rule: Rule = "max"
    gradient: Gradient = "straight_through"
    smoothing: float = 0.0
    groups: int = 0

    @property
    def learns(self) -> bool:
        """Whether its step is a parameter."""
        return self.rule in ("learned", "learned_mse")

    def __post_init__(self) -> None:
        if not LEAST_BITS <= self.bits <= MOST_BITS:
            raise SchemeError(f"bits is {self.bits}; allowed: {LEAST_BITS} to {MOST_BITS}")
        if not 0 <= self.smoothing <= 1:
            raise SchemeError(f"smoothing is {self.smoothing}; allowed: 0 (none) to 1")
        if (self.granularity == "group") != (self.groups > 0):
            raise SchemeError(
                f"groups is {self.groups}; allowed: a number from 1 on with granularity 'group', else 0, the default"
            )

    @property
    def largest(self) -> int:
        """The largest integer of a symmetric grid."""
        return max(1, 2 ** (self.bits - 1) - 1)

    def scales(self, rows: int) -> int:
        """Return how many scales a weight of so many rows has."""
        return {"channel": rows, "group": self.groups}.get(self.granularity, 1)


PER_CHANNEL = Quantizer(granularity="channel")
STATIC = Quantizer(rule="ema")
"""One range, fixed by training or calibration."""
PER_TOKEN = Quantizer(granularity="token")
