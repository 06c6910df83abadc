"""RoBERTa (Liu et al., 2019) and models of the same architecture: XLM-RoBERTa, CamemBERT.

Positions are counted from the row after ``pad_token_id``, so the first ``pad_token_id + 1`` rows of the position table
are never used, and a sequence has that many positions fewer than ``max_position_embeddings``.
"""

from __future__ import annotations

from dataclasses import replace

from q8core.errors import CheckpointError
from q8core.model.families import bert
from q8core.model.families.family import Family, HeadNames, Values, buffers
from q8core.model.spec import EncoderSpec

DEFAULTS: Values = {**bert.DEFAULTS, "pad_token_id": 1}


def spec(values: Values) -> EncoderSpec:
    """Return the encoder of a config.

    Raises:
        CheckpointError: if positions cannot be counted from ``pad_token_id``, or none is left.
    """
    padding, rows = values["pad_token_id"], values["max_position_embeddings"]
    if not isinstance(padding, int) or not 0 <= padding < rows - 1:
        raise CheckpointError(
            f"pad_token_id must be from 0 to {rows - 2}, because positions are counted from the row behind it and "
            f"max_position_embeddings is {rows}; found {padding!r}"
        )
    first = padding + 1
    return replace(bert.bert_spec(values), positions=rows - first, first_position=first)


def _family(model_type: str, classes: str, vocabulary: int) -> Family:
    return Family(
        model_type=model_type,
        tokenizer=f"{classes}Tokenizer",
        prefix="roberta",
        defaults={**DEFAULTS, "vocab_size": vocabulary},
        sizes=bert.SIZES,
        fixed=bert.FIXED,
        spec=spec,
        modules=bert.MODULES,
        heads={
            "classify": HeadNames(
                f"{classes}ForSequenceClassification",
                "classifier.out_proj",
                dense="classifier.dense",
                activation="tanh",
                dropout=("head_input", "head_output"),
            ),
            "qa": HeadNames(f"{classes}ForQuestionAnswering", "qa_outputs"),
        },
        unused=("lm_head.", "roberta.pooler.", *buffers("roberta")),
        other_heads={f"{classes}ForTokenClassification": "classifier.", f"{classes}ForMultipleChoice": "classifier."},
    )


FAMILIES = (
    _family("roberta", "Roberta", 50265),
    _family("xlm-roberta", "XLMRoberta", 30522),
    _family("camembert", "Camembert", 30522),
)
