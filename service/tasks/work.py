"""The interface of a request, of any task, for the pipeline, the shadow comparison and the cascade."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

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

    def answers(self, logits: list[Logits]) -> list[Any]:
        """Return the answer to each input from the sequences' logits; may be called for several backends' logits."""
        ...

    def join(self, answers: list[Any]) -> T_co:
        """Return the answer to the request from those to its inputs, each from this work or one of `again`."""
        ...

    def again(self, model: Model, places: Sequence[int]) -> Work[T_co]:
        """Return the same question about some of the inputs for a model of this task.

        For the model of this work, which has encoded them, it is encoded already.

        Raises:
            BadInput, InputError: the other model cannot be asked this.
        """
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
