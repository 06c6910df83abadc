"""The errors that a user can see, as one tree.

Q8Error
 ├── InputError         a text, file or argument from the user is wrong
 ├── SchemeError        a quantization scheme names something that does not exist
 ├── CalibrationError   a range is needed that no data has set
 ├── TrainingError      training failed
 ├── QualityError       a quantized model does not answer as the float model does
 ├── CheckpointError    a checkpoint is damaged, incomplete or of the wrong kind
 └── EngineError        a kernel is missing on this CPU, or computes something else
"""

from __future__ import annotations

from typing import Any


class Q8Error(Exception):
    """Base of all expected errors; the message is a sentence for the user."""

    exit_code = 1


class InputError(Q8Error):
    """Raised when the user's data or arguments are wrong; says what is allowed."""

    exit_code = 2


class SchemeError(Q8Error):
    """Raised when a scheme has an unknown preset, slot, key or value."""

    exit_code = 2


class CalibrationError(Q8Error):
    """Raised when a quantizer has no usable range."""


class TrainingError(Q8Error):
    """Raised when training cannot go on because the loss is NaN or infinite."""


class QualityError(Q8Error):
    """Raised when no allowed way to quantize a model keeps enough of its answers.

    Attributes:
        report: what was tried and measured, as plain JSON values.
    """

    exit_code = 5

    def __init__(self, message: str, report: dict[str, Any]) -> None:
        super().__init__(message)
        self.report = report


class CheckpointError(Q8Error):
    """Raised when a checkpoint cannot be trusted or does not have what was asked for."""

    exit_code = 3


class EngineError(Q8Error):
    """Raised when an engine or kernel cannot run correctly on this machine."""

    exit_code = 4
