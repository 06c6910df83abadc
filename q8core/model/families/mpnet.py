"""MPNet (Song et al., 2020): BERT without token types, with positions from row 2 and a bias by relative position."""

from __future__ import annotations

from dataclasses import replace

from q8core.errors import CheckpointError
from q8core.model.families import bert
from q8core.model.families.family import Family, HeadNames, Values, buffers
from q8core.model.spec import EncoderSpec

_PAD_TOKEN, _BUCKETS = 1, 32
_FIRST_POSITION = _PAD_TOKEN + 1
DEFAULTS: Values = {
    **{name: value for name, value in bert.DEFAULTS.items() if name != "type_vocab_size"},
    "vocab_size": 30527,
    "pad_token_id": _PAD_TOKEN,
}
# transformers counts positions from row 2 and uses 32 buckets of distances, whatever a config says
FIXED: Values = {"hidden_act": "gelu", "pad_token_id": _PAD_TOKEN, "relative_attention_num_buckets": _BUCKETS}
_ATTENTION = "encoder.layer.{layer}.attention"
MODULES = {
    **{slot: module for slot, module in bert.MODULES.items() if slot != "token_type_embeddings"},
    "query": f"{_ATTENTION}.attn.q",
    "key": f"{_ATTENTION}.attn.k",
    "value": f"{_ATTENTION}.attn.v",
    "attention_output": f"{_ATTENTION}.attn.o",
    "attention_norm": f"{_ATTENTION}.LayerNorm",
    "relative_attention_bias": "encoder.relative_attention_bias",
}


def spec(values: Values) -> EncoderSpec:
    """Return the encoder of a config.

    Raises:
        CheckpointError: if the table of positions has no row for a token.
    """
    rows = values["max_position_embeddings"]
    if rows <= _FIRST_POSITION:
        raise CheckpointError(
            f"max_position_embeddings must be above {_FIRST_POSITION}, where positions begin; found {rows}"
        )
    return replace(
        bert.bert_spec({**values, "type_vocab_size": 0}),
        positions=rows - _FIRST_POSITION,
        first_position=_FIRST_POSITION,
        relative_buckets=_BUCKETS,
    )


FAMILIES = (
    Family(
        model_type="mpnet",
        tokenizer="MPNetTokenizer",
        prefix="mpnet",
        defaults=DEFAULTS,
        sizes=tuple(name for name in bert.SIZES if name != "type_vocab_size"),
        fixed=FIXED,
        spec=spec,
        modules=MODULES,
        heads={
            "classify": HeadNames(
                "MPNetForSequenceClassification",
                "classifier.out_proj",
                dense="classifier.dense",
                activation="tanh",
                dropout=("head_input", "head_output"),
            ),
            "qa": HeadNames("MPNetForQuestionAnswering", "qa_outputs"),
        },
        unused=("lm_head.", "mpnet.pooler.", *buffers("mpnet")),
        other_heads={"MPNetForTokenClassification": "classifier.", "MPNetForMultipleChoice": "classifier."},
    ),
)
