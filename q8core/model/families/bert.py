"""BERT (Devlin et al., 2018), and models of the same architecture: MiniLM, TinyBERT, BGE, E5, GTE."""

from __future__ import annotations

from q8core.model.families.family import Family, HeadNames, Values, buffers
from q8core.model.spec import EncoderSpec

DEFAULTS: Values = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "initializer_range": 0.02,
}
SIZES = tuple(name for name in DEFAULTS if name not in ("layer_norm_eps", "pad_token_id", "initializer_range"))
FIXED: Values = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
_LAYER = "encoder.layer.{layer}"
MODULES = {
    "word_embeddings": "embeddings.word_embeddings",
    "token_type_embeddings": "embeddings.token_type_embeddings",
    "position_embeddings": "embeddings.position_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "query": f"{_LAYER}.attention.self.query",
    "key": f"{_LAYER}.attention.self.key",
    "value": f"{_LAYER}.attention.self.value",
    "attention_output": f"{_LAYER}.attention.output.dense",
    "attention_norm": f"{_LAYER}.attention.output.LayerNorm",
    "ffn_in": f"{_LAYER}.intermediate.dense",
    "ffn_out": f"{_LAYER}.output.dense",
    "ffn_norm": f"{_LAYER}.output.LayerNorm",
}
"""The same in the families whose code transformers derived from its BERT."""


def bert_spec(values: Values) -> EncoderSpec:
    """Return the encoder of a config with BERT's names."""
    return EncoderSpec(
        layers=values["num_hidden_layers"],
        hidden=values["hidden_size"],
        heads=values["num_attention_heads"],
        inner=values["intermediate_size"],
        vocabulary=values["vocab_size"],
        positions=values["max_position_embeddings"],
        token_types=values["type_vocab_size"],
        norm_epsilon=values["layer_norm_eps"],
        pad_token=values["pad_token_id"],
    )


FAMILIES = (
    Family(
        model_type="bert",
        tokenizer="BertTokenizer",
        prefix="bert",
        defaults=DEFAULTS,
        sizes=SIZES,
        fixed=FIXED,
        spec=bert_spec,
        modules=MODULES,
        heads={
            "classify": HeadNames(
                "BertForSequenceClassification",
                "classifier",
                dense="bert.pooler.dense",
                activation="tanh",
                dropout=("head_output",),
            ),
            "qa": HeadNames("BertForQuestionAnswering", "qa_outputs"),
        },
        unused=("cls.", *buffers("bert")),
        other_heads={"BertForTokenClassification": "classifier.", "BertForMultipleChoice": "classifier."},
    ),
)
