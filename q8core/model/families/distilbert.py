"""DistilBERT (Sanh et al., 2019): BERT without token types and without a pooler, with names of its own."""

from __future__ import annotations

from q8core.model.families.family import Family, HeadNames, Values, buffers
from q8core.model.spec import EncoderSpec

DEFAULTS: Values = {
    "vocab_size": 30522,
    "dim": 768,
    "n_layers": 6,
    "n_heads": 12,
    "hidden_dim": 3072,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "initializer_range": 0.02,
}
# Sinusoidal positions need no special case: they are stored as a table like any other.
FIXED: Values = {"activation": "gelu"}
_LAYER = "transformer.layer.{layer}"
MODULES = {
    "word_embeddings": "embeddings.word_embeddings",
    "position_embeddings": "embeddings.position_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "query": f"{_LAYER}.attention.q_lin",
    "key": f"{_LAYER}.attention.k_lin",
    "value": f"{_LAYER}.attention.v_lin",
    "attention_output": f"{_LAYER}.attention.out_lin",
    "attention_norm": f"{_LAYER}.sa_layer_norm",
    "ffn_in": f"{_LAYER}.ffn.lin1",
    "ffn_out": f"{_LAYER}.ffn.lin2",
    "ffn_norm": f"{_LAYER}.output_layer_norm",
}


def spec(values: Values) -> EncoderSpec:
    """Return the encoder of a config."""
    return EncoderSpec(
        layers=values["n_layers"],
        hidden=values["dim"],
        heads=values["n_heads"],
        inner=values["hidden_dim"],
        vocabulary=values["vocab_size"],
        positions=values["max_position_embeddings"],
        token_types=0,
        norm_epsilon=1e-12,  # not in the config
        pad_token=values["pad_token_id"],
    )


FAMILIES = (
    Family(
        model_type="distilbert",
        tokenizer="BertTokenizer",
        prefix="distilbert",
        defaults=DEFAULTS,
        sizes=("vocab_size", "dim", "n_layers", "n_heads", "hidden_dim", "max_position_embeddings"),
        fixed=FIXED,
        spec=spec,
        modules=MODULES,
        heads={
            "classify": HeadNames(
                "DistilBertForSequenceClassification",
                "classifier",
                dense="pre_classifier",
                activation="relu",
                dropout=("head_output",),
            ),
            "qa": HeadNames("DistilBertForQuestionAnswering", "qa_outputs", dropout=("head_input",)),
        },
        unused=("vocab_transform.", "vocab_layer_norm.", "vocab_projector.", *buffers("distilbert")),
        other_heads={
            "DistilBertForTokenClassification": "classifier.",
            "DistilBertForMultipleChoice": "classifier.",
        },
        dropout=("embeddings", "attention", "ffn_output"),
        heads_key="n_heads",
        inner_key="hidden_dim",
    ),
)
