"""POST /predict and /tokenize of TEI (Text Embeddings Inference), over the same pipeline as /classify."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter
from pydantic import BaseModel, Discriminator, Field, Tag
from tokenizers import Encoding, Tokenizer

from q8core.special_tokens import Layout, sequence_template
from q8core.tokenizer import encode_plain
from service.errors import UNION_MARK, BadInput, EmptyInput, TooManyTokens
from service.http.routes.dependencies import INFERENCE_ERRORS, BackendHeader, ServiceDep, TraceDep, error_responses
from service.http.routes.naming import named_model
from service.http.routes.texts import Texts, listed
from service.queueing.token_bounds import least_tokens
from service.tasks import schemas
from service.tasks.encoding import BodyWords, Cut
from service.tasks.strict import StrictModel, Text

router = APIRouter(tags=["other servers' APIs"])

_WORDS = BodyWords(truncate="truncate to true")
_Pair = Annotated[list[Text], Field(min_length=1, max_length=2)]


def _shape(value: Any) -> str | None:
    """Choose the shape by the first element, as TEI does: a text starts a pair, a list starts a batch."""
    if isinstance(value, list):
        return f"{UNION_MARK}pair" if value and isinstance(value[0], str) else f"{UNION_MARK}batch"
    return f"{UNION_MARK}text" if isinstance(value, str) else None


_Inputs = Annotated[
    Annotated[Text, Tag(f"{UNION_MARK}text")]
    | Annotated[_Pair, Tag(f"{UNION_MARK}pair")]
    | Annotated[list[_Pair], Field(fail_fast=True), Tag(f"{UNION_MARK}batch")],
    Discriminator(
        _shape,
        custom_error_type="inputs_type",
        custom_error_message="a text, a pair [text, text], or a list of [text] and [text, text] is expected",
    ),
]


_PROMPTS = "Null: the models here have no prompts, and any name is answered 422."


def _refuse_prompt(name: str | None) -> None:
    """Refuse a prompt's name, as TEI does for a model without prompts."""
    if name is not None:
        raise BadInput(f"prompt_name is {name!r}, and the models here have no prompts; leave it out or send null")


class PredictRequest(StrictModel):
    """A request in TEI's form: a flat list is one pair of texts; only a list of lists holds several inputs."""

    inputs: _Inputs = Field(
        description="A text, a pair [text, text], or a list of [text] and [text, text].",
        examples=["a gripping, beautifully acted film"],
    )
    raw_scores: bool = Field(default=False, description="Logits instead of probabilities.")
    truncate: bool = Field(default=False, description="Cut what does not fit the model; else it is answered 422.")
    truncation_direction: Literal["Left", "Right", "left", "right"] = Field(
        default="Right", description="Where a text that is cut loses tokens: Right, its end, or Left, its beginning."
    )
    prompt_name: Text | None = Field(default=None, description=_PROMPTS)

    @property
    def several(self) -> bool:
        """Whether the client sent a batch, and so gets a list of answers."""
        return _shape(self.inputs) == f"{UNION_MARK}batch"

    def items(self) -> list[schemas.ClassifyInput]:
        """Return every input, one text or two."""
        if isinstance(self.inputs, str):
            return [self.inputs]
        pairs = self.inputs if self.several else [self.inputs]
        return [_text_pair(cast("list[str]", pair)) for pair in pairs]


def _text_pair(texts: list[str]) -> schemas.TextPair:
    return schemas.TextPair(text=texts[0], text_pair=texts[1] if len(texts) == 2 else None)


PredictResponse = list[schemas.LabelScore] | list[list[schemas.LabelScore]]


@router.post("/predict", responses=error_responses(*INFERENCE_ERRORS), summary="As TEI's /predict")
async def predict(
    body: PredictRequest, service: ServiceDep, trace: TraceDep, backend: BackendHeader = None
) -> PredictResponse:
    """Return one flat list of labels, best first, or for a batch one list for each input."""
    _refuse_prompt(body.prompt_name)
    inputs = body.items()
    if not inputs:
        raise EmptyInput("inputs is an empty list; send at least one text")
    parameters = schemas.ClassifyParameters(
        function_to_apply="none" if body.raw_scores else None, truncation=body.truncate
    )
    request = schemas.ClassifyRequest(inputs=inputs, parameters=parameters)
    cut = Cut(side="left" if body.truncation_direction.lower() == "left" else "right")
    rows = await service.pipeline.classify(request, backend, trace, _WORDS, cut)
    return rows if body.several else rows[0]


class TokenizeRequest(StrictModel):
    """One text or several."""

    inputs: Texts = Field(examples=["a gripping, beautifully acted film"])
    add_special_tokens: bool = Field(default=True, description="With special tokens, as the model sees it.")
    prompt_name: Text | None = Field(default=None, description=_PROMPTS)
    model: Text | None = Field(default=None, description="A loaded model's name; default: any.")


class Token(BaseModel):
    """A token; ``start`` and ``stop`` are Unicode code points of the text, null for a special token."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


@router.post(
    "/tokenize", responses=error_responses(400, 401, 404, 408, 413, 415, 422, 500, 503), summary="Texts to tokens"
)
def tokenize(body: TokenizeRequest, service: ServiceDep) -> list[list[Token]]:
    """Return one list of tokens for each text, without truncation: compare their number with a model's max_length."""
    _refuse_prompt(body.prompt_name)
    model = named_model(service, None, body.model)
    texts = listed(body.inputs)
    if not texts:
        raise EmptyInput("inputs is an empty list; send at least one text")
    tokenizer, layout = model.tokenizer, sequence_template(model.tokenizer).one if body.add_special_tokens else None
    most, around = service.settings.max_queue_tokens, 0 if layout is None else layout.specials
    too_many = TooManyTokens(f"more than {most} tokens; send the texts in parts")
    if _least_tokens(tokenizer, texts, around, most + 1) > most:
        raise too_many
    room, found = most, list[list[Token]]()
    for text in texts:
        encoded = encode_plain(tokenizer, text)
        room -= len(encoded) + around
        if room < 0:
            raise too_many
        found.append(_tokens(tokenizer, text, encoded, layout))
    return found


def _least_tokens(tokenizer: Tokenizer, texts: list[str], around: int, enough: int) -> int:
    """Return a lower bound on the tokens, with `around` more for each text; see `service.queueing.token_bounds`."""
    found = 0
    for text in texts:
        found += around + least_tokens(tokenizer, text, enough - found)
        if found >= enough:
            break
    return found


def _tokens(tokenizer: Tokenizer, text: str, encoded: Encoding, layout: Layout | None) -> list[Token]:
    tokens = [
        Token(id=token, text=text[start:stop], special=False, start=start, stop=stop)
        for token, (start, stop) in zip(encoded.ids, encoded.offsets, strict=True)
    ]
    if layout is None:
        return tokens
    before, after = (
        [
            Token(id=index, text=tokenizer.id_to_token(index) or "", special=True, start=None, stop=None)
            for index in marks.ids
        ]
        for marks in layout.marks
    )
    return [*before, *tokens, *after]
