"""The attention twin inside a real BERT: masks, calibration, start steps, and what it refuses."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import BertForSequenceClassification
from transformers.models.bert.modeling_bert import BertSelfAttention

from q8core.errors import CalibrationError, InputError, SchemeError
from q8core.quant import calibrate, prepare, preset
from q8core.quant.self_attention import QATSelfAttention
from tests.quant.conftest import Batch, make_batch, make_classifier, make_qa

SCHEME = preset("q8bert-attention")
PATH = "bert.encoder.layer.{}.attention.self"
WITHOUT_LAYER_1 = {PATH.format(1): {"enabled": False}, PATH.format(1) + ".value": {"requantize_output": False}}


def calibrated(**changes: object) -> BertForSequenceClassification:
    model = prepare(make_classifier(**changes), SCHEME)
    calibrate(model, [make_batch(seed) for seed in range(3)])
    assert isinstance(model, BertForSequenceClassification)
    return model.eval()


def attention(model: torch.nn.Module, layer: int = 0) -> QATSelfAttention:
    found = model.get_submodule(PATH.format(layer))
    assert isinstance(found, QATSelfAttention)
    return found


def test_only_enabled_layers_get_a_twin() -> None:
    model = prepare(make_classifier(), replace(SCHEME, overrides=WITHOUT_LAYER_1))
    assert "quantized attention products" in repr(attention(model))
    assert type(model.get_submodule(PATH.format(1))) is BertSelfAttention
    assert type(prepare(make_qa(), preset("q8bert")).get_submodule(PATH.format(0))) is BertSelfAttention


def test_operands_that_do_not_fit_leave_the_model_alone(classifier: BertForSequenceClassification) -> None:
    scheme = replace(SCHEME, overrides={PATH.format(1) + ".key": {"enabled": False}})
    with pytest.raises(SchemeError, match=r"layer\.1\.attention\.self need requantized query, key and value, but key"):
        prepare(classifier, scheme)
    assert type(classifier.get_submodule(PATH.format(0))) is BertSelfAttention


def test_calibration_computes_in_float_and_uncalibrated_ranges_are_named(batch: Batch) -> None:
    model = make_classifier()
    expected = model(**batch).logits
    seen: list[Tensor] = []
    prepare(model, SCHEME)
    with pytest.raises(CalibrationError, match=r"layer\.0\.attention\.self\.query: the input range"):
        model(**batch)
    handle = model.register_forward_hook(lambda *args: seen.append(args[2].logits))
    calibrate(model, [batch])
    handle.remove()
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-5)
    found = model(**batch).logits
    assert not torch.equal(found, expected)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_padding_changes_no_bit() -> None:
    """Sums of integers: a sequence has the same logits alone as in a padded batch."""
    model, batch = calibrated(), make_batch(7)
    with torch.no_grad():
        together = model(**batch).logits
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            alone = model(**{name: tensor[row : row + 1, :length] for name, tensor in batch.items()}).logits
            assert torch.equal(alone[0], together[row])


def test_eager_and_sdpa_masks_mean_the_same(batch: Batch) -> None:
    logits: list[Tensor] = []
    for implementation in ("eager", "sdpa"):
        model = calibrated()
        model.set_attn_implementation(implementation)
        logits.append(model(**batch).logits)
    assert torch.equal(*logits)


def test_a_sequence_of_padding_alone_is_finite_in_both_directions(batch: Batch) -> None:
    model = calibrated().train()
    batch["attention_mask"][2] = 0
    out = model(**batch, labels=torch.zeros(6, dtype=torch.int64))
    out.loss.backward()
    assert torch.isfinite(out.logits).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_masks_that_do_more_than_hide_are_refused() -> None:
    twin = attention(calibrated())
    bias = torch.zeros(1, 1, 5, 5)
    bias[0, 0, 2, 3] = -1.5
    with pytest.raises(InputError, match=r"only show \(0\) or hide keys.*found -1\.5"):
        twin(torch.randn(1, 5, 32), bias)


def test_probabilities_are_not_to_be_had(batch: Batch) -> None:
    model = calibrated()
    model.set_attn_implementation("eager")
    with pytest.raises(SchemeError, match=r"layer\.0\.attention\.self: .*output_attentions"):
        model(**batch, output_attentions=True)


def test_dropout_is_for_training_only() -> None:
    twin, x = attention(calibrated(attention_probs_dropout_prob=0.5)), torch.randn(2, 9, 32)
    assert torch.equal(twin(x)[0], twin(x)[0])
    twin.train()
    assert not torch.equal(twin(x)[0], twin(x)[0])
    twin.dropout.p = 0.0
    torch.testing.assert_close(twin(x)[0], twin.eval()(x)[0], rtol=0, atol=0.1)


@pytest.mark.parametrize("late", ["attention_products", "value"])
def test_products_start_with_their_operands(late: str, batch: Batch) -> None:
    """Before the start step attention is Hugging Face's; a value in float has no integers to multiply."""
    slots = {**SCHEME.slots, late: replace(SCHEME.slots[late], start_step=2)}
    model = prepare(
        make_classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), replace(SCHEME, slots=slots)
    )
    twin, steps = attention(model.train()), []
    plain = BertSelfAttention.forward
    for _ in range(4):
        calls: list[object] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BertSelfAttention, "forward", lambda *a, c=calls, **k: (c.append(a), plain(*a, **k))[1])
            model(**batch)
        steps.append(len(calls))
    assert steps == [2, 2, 0, 0]
    assert int(twin.value.get_buffer("observed_steps")) == 4


def test_a_copy_shares_nothing(batch: Batch) -> None:
    model = calibrated()
    expected = model(**batch).logits
    twin = copy.deepcopy(model)
    assert attention(twin).query is twin.get_submodule(PATH.format(0) + ".query")
    assert attention(twin).context is not attention(model).context
    with torch.no_grad():
        attention(twin).value.weight.zero_()
    assert torch.equal(model(**batch).logits, expected)
    assert not torch.equal(twin(**batch).logits, expected)
    assert attention(model).context._hidden is None  # no tensor outlives the pass
