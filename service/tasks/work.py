"""What the pipeline, the shadow comparison and the cascade need of a request, whatever its task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from torch import Tensor

from service.tasks.verdict import Verdict

if TYPE_CHECKING:
    from service.models.model import Model
    from service.tasks.encoding import EncodedRequest

T_co = TypeVar("T_co", covariant=True)


class Work(Protocol[T_co]):
    """A request of one task: see `service.tasks.encoding`."""

    @property
    def task(self) -> str:
        """The task whose engines compute it."""
        ...

    @property
    def model(self) -> Model:
        """The model that computes it."""
        ...

    @property
    def inputs(self) -> int:
        """How many inputs it holds."""
        ...

    @property
    def characters(self) -> int:
        """How long its texts are together."""
        ...

    def least_tokens(self, enough: int) -> int:
        """Count tokens that it has at least, up to a number that is enough."""
        ...

    def encode(self) -> EncodedRequest:
        """Turn texts into sequences."""
        ...

    def finish(self, logits: list[Tensor]) -> T_co:
        """Turn the sequences' logits into the answer; may be called for several backends' logits."""
        ...

    def verdicts(self, logits: list[Tensor]) -> list[Verdict]:
        """Say for each input what these logits, one tensor for each sequence, mean."""
        ...

    def sequences(self) -> Sequence[int]:
        """How many sequences each input became; known once encoded."""
        ...

    def texts(self, place: int) -> dict[str, str]:
        """Return the texts of one input by their names in the request."""
        ...
