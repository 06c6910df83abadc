"""Every family against transformers: names, shapes, logits, gradients and new heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from q8core.model.families import FAMILIES
from q8core.model.head import TaskKind
from q8core.model.sites import float_shapes
from q8core.model.weights import load_network
from tests.model.oracle import LABELS, configured, gradients, inputs, logits_of, loss_of, names, ours, small, theirs

KINDS: tuple[TaskKind, ...] = ("classify", "qa")
ROUNDED_LATER = {"mpnet"}
"""Families whose probabilities transformers keeps in float32 under autocast, where its float32 mask is added."""
every_family = pytest.mark.parametrize("model_type", FAMILIES)
every_task = pytest.mark.parametrize("kind", KINDS)


@every_family
@every_task
def test_sites_are_transformers_parameters(model_type: str, kind: TaskKind) -> None:
    model, family = theirs(model_type, kind, **small(model_type)), FAMILIES[model_type]
    shapes = float_shapes(family.spec(model.config.to_dict()), family.head(kind, LABELS))
    found = {name: shapes[ours] for ours, name in names(model, kind).items()}
    assert found == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert family.heads[kind].architecture == type(model).__name__


@every_family
def test_what_no_task_reads_is_known(model_type: str) -> None:
    family, config = FAMILIES[model_type], configured(model_type, "qa", **small(model_type))
    spec = family.spec(config.to_dict())
    used = {f"{module}." for kind in KINDS for module in family.site_modules(spec, kind).values()}
    starts = tuple(used | set(family.unused))
    classes = [getattr(transformers, name.architecture) for name in family.heads.values()]
    base = classes[0].__name__.removesuffix("ForSequenceClassification")
    pretraining = [name for name in (f"{base}ForMaskedLM", f"{base}ForPreTraining") if hasattr(transformers, name)]
    assert pretraining
    for name in pretraining:
        model = getattr(transformers, name)(config)
        stored = [*model.state_dict(), *(buffer for buffer, _ in model.named_buffers())]  # as older versions did
        assert not [each for each in stored if not each.startswith(starts)], name
    for name, beginning in family.other_heads.items():
        model = getattr(transformers, name)(config)
        left = [each for each in model.state_dict() if not each.startswith((*starts, beginning))]
        assert not left, name
        assert any(each.startswith(beginning) for each in model.state_dict())


@every_family
@every_task
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_are_transformers(model_type: str, kind: TaskKind, precision: str, dropout: float, padded: bool) -> None:
    model, network, batch = _both(model_type, kind, padded, dropout)
    seen = batch["attention_mask"] != 0
    results: list[Tensor] = []
    for each in (model, network):
        each.train(dropout > 0)
        torch.manual_seed(7)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = logits_of(each(**batch))
        results.append(logits if kind == "classify" else logits[seen])
    if model_type in ROUNDED_LATER and precision == "bf16" and dropout and padded:
        # some bfloat16 roundings of numbers around 1: it rounds after dropping, we before and after
        torch.testing.assert_close(*results, rtol=0.02, atol=0.02)
    else:
        assert torch.equal(*results)


@every_family
@every_task
def test_gradients_are_transformers(model_type: str, kind: TaskKind) -> None:
    model, network, batch = _both(model_type, kind, padded=True)
    seen = batch["attention_mask"] != 0
    for each in (model, network):
        logits = logits_of(each(**batch))
        loss_of(logits if kind == "classify" else logits * seen.unsqueeze(-1), kind).backward()
    wanted, found = gradients(model), gradients(network)
    for name, their_name in names(model, kind).items():
        gradient, expected = found[name], wanted[their_name]
        assert gradient is not None
        assert expected is not None
        # families that count positions row by row add up a batch's gradients of a position in another order
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6, msg=lambda text, at=name: f"{at}: {text}")
        assert name.endswith("bias") or bool(expected.any()), name


@every_family
@every_task
def test_a_new_head_is_drawn_as_transformers_draws_it(model_type: str, kind: TaskKind) -> None:
    model, family = theirs(model_type, kind, **small(model_type)), FAMILIES[model_type]
    config = model.config
    encoder = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(f"{family.prefix}.")}
    kept = {our: encoder[name] for our, name in names(model, kind).items() if name in encoder}
    torch.manual_seed(5)
    fresh = type(model).from_pretrained(None, config=config, state_dict=encoder)
    rng = torch.get_rng_state()
    torch.manual_seed(5)
    network = load_network(
        family.spec(config.to_dict()), family.head(kind, LABELS), kept, new_head_std=config.initializer_range
    )
    assert torch.equal(torch.get_rng_state(), rng)
    state = fresh.state_dict()
    for our, name in names(model, kind).items():
        assert torch.equal(network.state_dict()[our], state[name]), name


def _both(model_type: str, kind: TaskKind, padded: bool, dropout: float = 0.0) -> tuple[Any, Any, dict[str, Tensor]]:
    model = theirs(model_type, kind, dropout=dropout, **small(model_type))
    spec = FAMILIES[model_type].spec(model.config.to_dict())
    batch = inputs(spec.vocabulary, spec.token_types, pad=spec.pad_token or 0, padded=padded)
    return model, ours(model, kind, dropout), batch
