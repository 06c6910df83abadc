"""The interface of a request, of any task, for the pipeline, the shadow comparison and the cascade."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from q8core.arrays import Logits
from service.tasks.verdict import Verdict

if TYPE_CHECKING:
    from service.models.model import Model
    from service.tasks.encoding import EncodedRequest

T_co = TypeVar("T_co", covariant=True)


class Work(Protocol[T_co]):
    """A request of one task; see `service.tasks.encoding`."""

    @property
    def task(self) -> str:
        """The task of the request."""
        ...

    @property
    def model(self) -> Model:
        """The model that answers it."""
        ...

    @property
    def inputs(self) -> int:
        """How many inputs it has."""
        ...

    @property
    def characters(self) -> int:
        """The total length of its texts."""
        ...

    def least_tokens(self, enough: int) -> int:
        """Return a lower bound on the number of tokens; counting may stop at ``enough``."""
        ...

    def encode(self) -> EncodedRequest:
        """Turn texts into sequences."""
        ...

    def finish(self, logits: list[Logits]) -> T_co:
        """Turn the sequences' logits into the answer; may be called for several backends' logits."""
        ...

    def verdicts(self, logits: list[Logits]) -> list[Verdict]:
        """Return the verdict on each input, from logits with one tensor per sequence."""
        ...

    def sequences(self) -> Sequence[int]:
        """How many sequences each input became; known once encoded."""
        ...

    def texts(self, place: int) -> dict[str, str]:
        """Return the texts of one input by their names in the request."""
        ...
