"""Request and response bodies: the Hugging Face task schemas, typed strictly (`service.tasks.strict`)."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypedDict, TypeVar

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from q8core.tasks.classify import FunctionToApply, LabelScore
from service.errors import UNION_MARK
from service.tasks.strict import StrictModel, Text, valid_unicode

_MODEL = "Name of a loaded model, see /info; default: the first one of the task."


class HostedOptions(StrictModel):
    """Options of Hugging Face's hosted API, which its clients send; they have no effect here."""

    use_cache: bool | None = None
    wait_for_model: bool | None = None
    use_gpu: bool | None = None
    dont_load_model: bool | None = None
    retry_on_error: bool | None = None


_OPTIONS = (
    "Taken as Hugging Face's clients send it; without effect: nothing is cached, models are loaded, CPUs compute."
)


class TextPair(StrictModel):
    """A text with an optional second one, as Hugging Face's pipeline takes it."""

    text: Text
    text_pair: Text | None = None


ClassifyInput = str | tuple[str, str] | TextPair


def _check_classify_inputs(value: Any) -> str | TextPair | list[ClassifyInput]:
    """Check the shape of the inputs, with one message where a pydantic union would give many."""
    if isinstance(value, str):
        return valid_unicode(value)
    if not isinstance(value, list):
        return _check_object("inputs", value)
    return [_check_classify_input(f"inputs[{place}]", item) for place, item in enumerate(value)]


def _check_classify_input(place: str, item: Any) -> ClassifyInput:
    if isinstance(item, str):
        return _check_text(place, item)
    if isinstance(item, list) and len(item) == 2:
        return _check_text(f"{place}[0]", item[0]), _check_text(f"{place}[1]", item[1])
    return _check_object(place, item)


def _check_object(place: str, item: Any) -> TextPair:
    if isinstance(item, TextPair):
        return item
    known = isinstance(item, dict) and "text" in item and item.keys() <= TextPair.model_fields.keys()
    if not known:
        raise _inputs_error(place, item)
    pair = item.get("text_pair")
    return TextPair(
        text=_check_text(f"{place}.text", item["text"]),
        text_pair=None if pair is None else _check_text(f"{place}.text_pair", pair),
    )


def _check_text(place: str, text: Any) -> str:
    if not isinstance(text, str):
        raise _inputs_error(place, text)
    try:
        return valid_unicode(text)
    except PydanticCustomError as error:
        raise PydanticCustomError(error.type, f"{place}: {error.message()}") from error  # type: ignore[arg-type]


def _inputs_error(place: str, value: Any) -> PydanticCustomError:
    names = {dict: "an object of another shape", list: "a list of another shape", type(None): "null", bool: "a boolean"}
    return PydanticCustomError(
        "inputs_type",
        "a text, an object with text and text_pair, or a list of texts, objects and [text, text_pair] pairs is "
        "expected; {place} is {got}",
        {"place": place, "got": names.get(type(value), "a number")},
    )


class ClassifyParameters(StrictModel):
    """How to classify, as in Hugging Face's text-classification task."""

    top_k: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Return only the best k labels; default: all."
    )
    function_to_apply: FunctionToApply | None = Field(
        default=None,
        description="Scores from logits; default: what the model was trained with: softmax as a rule, sigmoid for "
        "several labels at once, none for a model that predicts a number.",
    )
    truncation: bool = Field(
        default=True,
        description="Cut over-long texts (the header x-q8bert-truncated counts them); false: answer 422 instead.",
    )


class ClassifyRequest(StrictModel):
    """One text or pair of texts, or several."""

    inputs: Annotated[str | TextPair | list[ClassifyInput], BeforeValidator(_check_classify_inputs)] = Field(
        description="A text, a pair {text, text_pair}, or a list of texts and pairs; in a list, a pair may also be "
        "[text, text_pair]. Empty texts are valid.",
        examples=["a gripping, beautifully acted film"],
    )
    parameters: ClassifyParameters | None = None
    options: HostedOptions | None = Field(default=None, description=_OPTIONS)
    backend: Text | None = Field(
        default=None,
        description="fp32, int8, or auto (int8, and what --cascade says where int8 is unsure); default: the server's.",
    )
    model: Text | None = Field(default=None, description=_MODEL)

    def items(self) -> list[tuple[str, str | None]]:
        """Return every input as ``(text, text_pair or None)``."""
        listed = self.inputs if isinstance(self.inputs, list) else [self.inputs]
        return [_text_and_pair(item) for item in listed]


def _text_and_pair(item: ClassifyInput) -> tuple[str, str | None]:
    if isinstance(item, str):
        return item, None
    return (item.text, item.text_pair) if isinstance(item, TextPair) else item


ClassifyResponse = list[list[LabelScore]]


class QAInput(StrictModel):
    """A question and the context that holds its answer."""

    question: Text
    context: Text


def _shape_of_qa_inputs(value: Any) -> str | None:
    """Choose the member of the union by shape, so that a problem is reported once, not once per member."""
    return {list: f"{UNION_MARK}list", dict: f"{UNION_MARK}one", QAInput: f"{UNION_MARK}one"}.get(type(value))


_QAInputs = Annotated[
    Annotated[QAInput, Tag(f"{UNION_MARK}one")]
    | Annotated[list[QAInput], Field(fail_fast=True), Tag(f"{UNION_MARK}list")],
    Discriminator(
        _shape_of_qa_inputs,
        custom_error_type="inputs_type",
        custom_error_message="an object with question and context, or a list of them, is expected",
    ),
]


class QAParameters(StrictModel):
    """How to search for the answer, as in Hugging Face's question-answering task."""

    top_k: int = Field(default=1, ge=1, le=20, description="How many answers to return at most, and at least one.")
    doc_stride: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="Tokens that neighbouring windows share; default: 128, at most half a window. Where no window has "
        "room for more context than that, they share half of what they have room for.",
    )
    max_answer_len: int = Field(default=15, ge=1, description="Longest answer in tokens.")
    max_seq_len: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Window size in tokens; default: 384 or what the model takes."
    )
    max_question_len: int = Field(default=64, ge=1, description="Longer questions are cut.")
    handle_impossible_answer: bool = Field(default=False, description="Also consider 'no answer'.")
    align_to_words: bool = Field(default=True, description="Grow answers to whole words.")


class QARequest(StrictModel):
    """``inputs`` with one pair or several, or the flat form with ``question`` and ``context`` on top."""

    inputs: _QAInputs | None = Field(
        default=None,
        examples=[{"question": "Who wrote it?", "context": "It was written by Ada Lovelace in 1843."}],
    )
    question: Text | None = None
    context: Text | None = None
    parameters: QAParameters | None = None
    options: HostedOptions | None = Field(default=None, description=_OPTIONS)
    backend: Text | None = Field(
        default=None,
        description="fp32, int8, or auto (int8, and what --cascade says where int8 is unsure); default: the server's.",
    )
    model: Text | None = Field(default=None, description=_MODEL)

    @model_validator(mode="after")
    def _one_form(self) -> QARequest:
        flat = (self.question is not None) + (self.context is not None)
        if (self.inputs is None and flat != 2) or (self.inputs is not None and flat):
            raise PydanticCustomError(
                "qa_form", "send either inputs: {question, context} (or a list of them) or both question and context"
            )
        return self

    def items(self) -> list[QAInput]:
        """Return every question with its context."""
        if self.inputs is None:
            assert self.question is not None  # _one_form
            assert self.context is not None
            return [QAInput(question=self.question, context=self.context)]
        return self.inputs if isinstance(self.inputs, list) else [self.inputs]


class AnswerSpan(BaseModel):
    """A span of the context; ``start`` and ``end`` are Unicode code points, end exclusive."""

    answer: str
    score: float
    start: int
    end: int


# Hugging Face's shape: one answer for top_k=1, otherwise a list, and a list of either for a list of inputs.
QAResponse = AnswerSpan | list[AnswerSpan] | list[list[AnswerSpan]]


_CompareInputs = Annotated[
    Annotated[Text, Tag(f"{UNION_MARK}text")] | Annotated[QAInput, Tag(f"{UNION_MARK}one")],
    Discriminator(
        lambda value: {str: f"{UNION_MARK}text", dict: f"{UNION_MARK}one"}.get(type(value)),
        custom_error_type="inputs_type",
        custom_error_message="one text, or an object with question and context, is expected",
    ),
]


class CompareRequest(StrictModel):
    """A text to classify, or a question with its context as ``inputs`` or in the flat form, for two variants."""

    inputs: _CompareInputs | None = Field(
        default=None,
        examples=["a gripping, beautifully acted film"],
        description="A text (classified), or an object with question and context (answered).",
    )
    question: Text | None = None
    context: Text | None = None
    model: Text | None = Field(default=None, description=_MODEL)
    variants: Annotated[list[Text], Field(min_length=2, max_length=2)] | None = Field(
        default=None,
        examples=[["sst2@fp32", "sst2@int8"]],
        description="Two of MODEL@BACKEND, of the same task and labels; default: both backends of the model.",
    )

    @model_validator(mode="after")
    def _one_form(self) -> CompareRequest:
        if self.model is not None and self.variants is not None:
            raise PydanticCustomError("compare_variants", "send either model or variants, which name their models")
        flat = (self.question is not None) + (self.context is not None)
        if (self.inputs is None and flat != 2) or (self.inputs is not None and flat):
            raise PydanticCustomError(
                "compare_form",
                "send either inputs (one text, or {question, context}) or both question and context",
            )
        return self

    def item(self) -> str | QAInput:
        """Return the text, or the question with its context."""
        if self.inputs is None:
            assert self.question is not None  # _one_form
            assert self.context is not None
            return QAInput(question=self.question, context=self.context)
        return self.inputs


AnswerT = TypeVar("AnswerT")
_SPEEDUP = "The first variant's inference time over the second's (fp32's over int8's), of this one request: noisy."
_RESULTS = "By backend, or by variant where the request names variants; in the order of the request."
_FIRST = "The model of the first variant."


class MemoryBytes(BaseModel):
    """Resident bytes of an engine, as in /info."""

    weights: int
    scales: int
    workspace: int


class ShareFacts(TypedDict):
    """The fields of a share besides the answer."""

    queue_ms: float
    inference_ms: float
    kernel: str
    bits: str
    memory_bytes: MemoryBytes


class _Share(BaseModel, Generic[AnswerT]):
    answer: AnswerT = Field(description="As the task's own route answers.")
    queue_ms: float = Field(description="Time in the queue, in milliseconds.")
    inference_ms: float = Field(description="From leaving the queue to the logits, in milliseconds.")
    kernel: str = Field(description="The linear kernel that ran.")
    bits: str = Field(description="Of weights, word embeddings and activations, such as 4-8-8.")
    memory_bytes: MemoryBytes


class ClassifyShare(_Share[ClassifyResponse]):
    """One variant's answer to a text, as from /classify, with its times and memory."""


class QAShare(_Share[AnswerSpan]):
    """One variant's answer to a question, as from /qa, with its times and memory."""


class LabelDelta(BaseModel):
    """The difference of the scores."""

    max_abs_prob: float = Field(description="Largest difference of a label's score.")


class NumberDelta(BaseModel):
    """The difference of a regression's numbers."""

    abs_diff: float = Field(description="Difference of the numbers.")


class SpanDelta(BaseModel):
    """The difference of the spans."""

    span_f1: float = Field(description="F1 of the two answers' words, as in SQuAD's score, 0 to 1.")


class ClassifyComparison(BaseModel):
    """Two variants' labels of one text."""

    task: Literal["classify"]
    model: str = Field(description=_FIRST)
    agree: bool | None = Field(description="Both put the same label first; null: the model predicts a number.")
    delta: LabelDelta | NumberDelta
    speedup: float = Field(description=_SPEEDUP)
    results: dict[str, ClassifyShare] = Field(description=_RESULTS)


class QAComparison(BaseModel):
    """Two variants' answers to one question."""

    task: Literal["qa"]
    model: str = Field(description=_FIRST)
    agree: bool = Field(description="Both found the same span.")
    delta: SpanDelta
    speedup: float = Field(description=_SPEEDUP)
    results: dict[str, QAShare] = Field(description=_RESULTS)


CompareResponse = Annotated[ClassifyComparison | QAComparison, Field(discriminator="task")]


class ErrorBody(BaseModel):
    """The body of every answer that is not 2xx."""

    error: str = Field(description="A sentence for a person.")
    error_type: str = Field(description="A fixed word for programs.")
    request_id: str
    details: list[dict[str, Any]] | None = None


class Health(BaseModel):
    """The answer of a probe."""

    status: Literal["alive", "ready"]
