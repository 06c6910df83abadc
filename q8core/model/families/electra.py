"""ELECTRA (Clark et al., 2020): BERT's encoder; small models have narrower embedding tables and a projection."""

from __future__ import annotations

from dataclasses import replace

from q8core.model.families import bert
from q8core.model.families.family import Family, HeadNames, Values, buffers
from q8core.model.spec import EncoderSpec

DEFAULTS: Values = {
    **bert.DEFAULTS,
    "embedding_size": 128,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}


def spec(values: Values) -> EncoderSpec:
    """Return the encoder of a config; it has a projection only if the tables and the layers differ in columns."""
    columns = values["embedding_size"]
    return replace(bert.bert_spec(values), embedding=None if columns == values["hidden_size"] else columns)


FAMILIES = (
    Family(
        model_type="electra",
        tokenizer="BertTokenizer",
        prefix="electra",
        defaults=DEFAULTS,
        sizes=(*bert.SIZES, "embedding_size"),
        fixed=bert.FIXED,
        spec=spec,
        modules={**bert.MODULES, "embedding_projection": "embeddings_project"},
        heads={
            "classify": HeadNames(
                "ElectraForSequenceClassification",
                "classifier.out_proj",
                dense="classifier.dense",
                activation="gelu",
                dropout=("head_input", "head_output"),
            ),
            "qa": HeadNames("ElectraForQuestionAnswering", "qa_outputs"),
        },
        # the heads of discriminator and generator, and the summary that multiple choice reads
        unused=(
            "discriminator_predictions.",
            "generator_predictions.",
            "generator_lm_head.",
            "sequence_summary.",
            *buffers("electra"),
        ),
        other_heads={"ElectraForTokenClassification": "classifier.", "ElectraForMultipleChoice": "classifier."},
    ),
)
