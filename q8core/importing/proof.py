"""The proof that an imported folder computes what transformers computes: equal tokens, and numbers within 1e-4."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import MODEL_FOR_QUESTION_ANSWERING_MAPPING

from q8core.checkpoint import Checkpoint
from q8core.checkpoint.float_source import FloatSource
from q8core.engines import TokenBatch, load_engine
from q8core.errors import CheckpointError, InputError
from q8core.importing import samples
from q8core.importing.reference import declared_class, encoder_class, load_reference, quiet_transformers, read_theirs
from q8core.importing.tokenizer_files import load_theirs
from q8core.tasks.classify import encode_text
from q8core.tasks.qa import encode_windows
from q8core.tokenizer import copy_tokenizer

LIMIT = 1e-4
"""Largest allowed absolute difference: summing float32 in another order gives a tenth of it or less."""
_SEED = 20


@dataclass(frozen=True)
class Proof:
    """The result of the comparison.

    Attributes:
        inputs: number of texts, pairs, or questions with their contexts.
        numbers: what was compared, such as logits.
        reference: what transformers' model was loaded from.
        largest_difference: the largest absolute difference of two numbers.
    """

    inputs: int
    numbers: str
    reference: str
    largest_difference: float


@dataclass(frozen=True)
class _Input:
    ids: list[int]
    types: list[int]
    theirs: Any


def prove(folder: Path, original: Path, written: FloatSource, work: Path) -> Proof:
    """Compare transformers' model of the original weights with the fp32 engine on the written folder.

    A model without a head gets the same random head on both sides, with two outputs per token.

    Args:
        folder: the original folder, which has the tokenizer for transformers.
        original: the same folder, or the one that its pickles were converted to.
        written: the imported model.
        work: an empty folder to write in.

    Raises:
        CheckpointError: tokens, tensors or numbers differ.
    """
    config = read_theirs(written.path)
    if written.head is not None:
        model, made_of = load_reference(original, written.path, config, declared_class(config))
        opened, numbers = Checkpoint.open(written.path), "logits"
    else:
        encoder, made_of = load_reference(original, written.path, config, encoder_class(type(config)))
        model = _with_random_head(encoder, config)
        opened, numbers = _saved(model, written.path, work), "hidden states (no head: through a random one)"
    inputs = _inputs(folder, opened, with_questions=written.head == "qa")
    largest = _largest_difference(model, opened, inputs)
    if not largest <= LIMIT:
        raise CheckpointError(
            f"{folder}: {numbers} of transformers and of the fp32 engine differ by up to {largest:.2g} on "
            f"{len(inputs)} inputs; allowed: {LIMIT:g}. The model computes something that q8bert does not"
        )
    return Proof(len(inputs), numbers, made_of, largest)


def _with_random_head(encoder: Any, config: Any) -> Any:
    """Return a question-answering model around an encoder, with outputs of the magnitude of hidden states."""
    config = deepcopy(config)
    config.num_labels = 2
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(_SEED)
        classes: Any = MODEL_FOR_QUESTION_ANSWERING_MAPPING
        model = classes[type(config)](config)
        inside = f"{model.base_model_prefix}."
        for name, parameter in model.named_parameters():
            if not name.startswith(inside):
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    model.base_model.load_state_dict(encoder.state_dict(), strict=False)  # this model has no pooler
    return model.eval()


def _saved(model: Any, tokenizer: Path, folder: Path) -> Checkpoint:
    """Save transformers' model and open it as a checkpoint."""
    with quiet_transformers():
        model.save_pretrained(str(folder))
    copy_tokenizer(tokenizer, folder)
    return Checkpoint.open(folder)


def _inputs(folder: Path, opened: Checkpoint, *, with_questions: bool) -> list[_Input]:
    """Encode the samples with both tokenizers.

    Raises:
        CheckpointError: the tokens differ.
    """
    tokenizer, theirs = opened.tokenizer(), load_theirs(folder)
    theirs.truncation_side = "right"
    texts, questions, length = samples.texts(), samples.questions(), opened.max_length
    if with_questions:
        opened.check_pairs(tokenizer)
    pairs = samples.PAIRS if _takes_pairs(opened, tokenizer) else range(0)
    found: list[_Input] = []
    for i, text in enumerate(texts):
        if with_questions:
            window = encode_windows(tokenizer, questions[i], text, length)[0]
            call = {"text": questions[i], "text_pair": text, "truncation": "only_second"}
            ours = _Input(window.input_ids, window.token_type_ids, None)
        else:
            pair = questions[i] if i in pairs else None
            encoded = encode_text(tokenizer, text, pair, length)
            if encoded.truncated and pair is not None:  # programs differ in which of the two texts they cut
                pair, encoded = None, encode_text(tokenizer, text, None, length)
            call = {"text": text, "text_pair": pair, "truncation": True}
            ours = _Input(encoded.input_ids, encoded.token_type_ids, None)
        given = theirs(**call, max_length=length, return_tensors="pt")
        _check_tokens(folder, text, ours.ids, cast("list[int]", given["input_ids"][0].tolist()))
        found.append(_Input(ours.ids, ours.types, given))
    return found


def _takes_pairs(opened: Checkpoint, tokenizer: Tokenizer) -> bool:
    try:
        opened.check_pairs(tokenizer)
    except InputError:
        return False
    return True


def _check_tokens(folder: Path, text: str, ours: list[int], theirs: list[int]) -> None:
    if ours != theirs:
        at = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(map(len, (ours, theirs)))
        )
        raise CheckpointError(
            f"{folder}: transformers' tokenizer and q8bert's make different tokens of {text[:60]!r}: "
            f"{theirs[at : at + 3]} and {ours[at : at + 3]} from token {at} on"
        )


def _largest_difference(model: Any, opened: Checkpoint, inputs: list[_Input]) -> float:
    """Return the largest absolute difference, which is NaN if any number is."""
    engine = load_engine(opened, "fp32")
    ours = torch.from_numpy(engine.infer(TokenBatch.pack([(one.ids, one.types) for one in inputs])))
    with torch.inference_mode():
        theirs = torch.cat(list(_outputs(model, inputs)))
    if ours.shape != theirs.shape:
        raise CheckpointError(
            f"{opened.path}: the engine gives {tuple(ours.shape)}, transformers {tuple(theirs.shape)}"
        )
    return float((ours - theirs).abs().max())


def _outputs(model: Any, inputs: Iterable[_Input]) -> Iterable[Tensor]:
    """Yield the outputs of each input, with rows as the engine packs them: one per text, or one per token."""
    for one in inputs:
        output = model(**one.theirs)
        if "start_logits" in output:
            yield torch.stack([output.start_logits[0], output.end_logits[0]], -1)
        else:
            yield output.logits if output.logits.dim() == 2 else output.logits[0]
