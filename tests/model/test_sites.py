"""Sites against the parameters that transformers gives a model of the same config."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from q8core.model.families import FAMILIES
from q8core.model.head import TaskKind
from q8core.model.sites import float_shapes, sites

MODELS = {
    ("bert", "classify"): BertForSequenceClassification,
    ("bert", "qa"): BertForQuestionAnswering,
}


@pytest.mark.parametrize(("model_type", "kind"), MODELS)
def test_sites_are_transformers_parameters(model_type: str, kind: TaskKind) -> None:
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=20,
        type_vocab_size=3,
        num_labels=5 if kind == "classify" else 2,
    )
    model: Any = MODELS[model_type, kind](config)
    family = FAMILIES[model_type]
    spec, head = family.spec(config.to_dict()), family.head(kind, 5)
    modules = family.site_modules(spec, kind)
    ours: dict[str, tuple[int, ...]] = {}
    for name, shape in float_shapes(spec, head).items():
        path, _, leaf = name.rpartition(".")
        ours[f"{modules[path]}.{leaf}"] = shape
    assert ours == {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.model_type)
def test_defaults_are_those_of_transformers(family: Any) -> None:
    from transformers import CONFIG_MAPPING

    theirs = CONFIG_MAPPING[family.model_type]().to_dict()
    assert dict(family.defaults) == {name: theirs[name] for name in family.defaults}
    assert {name: value for name, value in family.fixed.items() if theirs.get(name, value) != value} == {}


def test_sites_of_one_path_are_one() -> None:
    family = FAMILIES["bert"]
    found = sites(family.spec(family.defaults), family.head("classify", 2))
    assert len({site.path for site in found}) == len(found)
