"""The twin of attention products inside a network: masks, calibration, start steps, and what it refuses."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from q8core.errors import CalibrationError, SchemeError
from q8core.model.attention import AttentionProducts
from q8core.model.network import Network
from q8core.quant import preset
from q8core.quant.qat.attention import QATAttentionProducts
from q8core.quant.qat.prepare import calibrate
from q8core.training.losses import task_loss
from tests.quant.conftest import Batch, make_batch, make_classifier, make_qa, prepared

SCHEME = preset("q8bert-attention")
PATH = "layers.{}.attention_products"
WITHOUT_LAYER_1 = {PATH.format(1): "float", "layers.1.value": {"output": None}}


def calibrated(dropout: float = 0.1) -> Network:
    model = prepared(make_classifier(dropout=dropout), SCHEME)
    calibrate(model, [make_batch(seed) for seed in range(3)])
    return model.eval()


def attention(model: nn.Module, layer: int = 0) -> QATAttentionProducts:
    found = model.get_submodule(PATH.format(layer))
    assert isinstance(found, QATAttentionProducts)
    return found


def operands(model: Network, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """What layer 0's projections give for a random hidden state, (2, heads, 9, D) each."""
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(seed))
    layer = model.layers[0]
    q, k, v = (
        linear(x).detach().unflatten(-1, (4, -1)).transpose(1, 2) for linear in (layer.query, layer.key, layer.value)
    )
    return q, k, v


def test_only_quantized_layers_get_a_twin() -> None:
    model = prepared(make_classifier(), replace(SCHEME, overrides=WITHOUT_LAYER_1))
    assert repr(attention(model)) == "QATAttentionProducts(dropout=0.1, relative_u8)"
    assert type(model.get_submodule(PATH.format(1))) is AttentionProducts
    assert type(prepared(make_qa(), preset("q8bert")).get_submodule(PATH.format(0))) is AttentionProducts


def test_it_adds_nothing_to_a_state() -> None:
    plain, model = make_classifier(), prepared(make_classifier(), SCHEME)
    assert dict(plain.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert not [name for name in model.state_dict() if "attention_products" in name]
    assert len(list(attention(model).modules())) == 1  # its projections are the layer's own


def test_operands_that_do_not_fit_leave_the_network_alone(classifier: Network) -> None:
    scheme = replace(SCHEME, overrides={"layers.1.key": "float"})
    with pytest.raises(SchemeError, match=r"layers\.1: attention_products in integers need .* but key has none"):
        prepared(classifier, scheme)
    assert type(classifier.get_submodule(PATH.format(0))) is AttentionProducts


def test_calibration_computes_in_float_and_uncalibrated_ranges_are_named(batch: Batch) -> None:
    model = make_classifier()
    expected = model(**batch)
    seen: list[Tensor] = []
    prepared(model, SCHEME)
    with pytest.raises(CalibrationError, match=r"layers\.0\.query: the input range"):
        model(**batch)
    handle = model.register_forward_hook(lambda *args: seen.append(args[2]))
    calibrate(model, [batch])
    handle.remove()
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-5)
    found = model(**batch)
    assert not torch.equal(found, expected)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_padding_changes_no_bit() -> None:
    """Sums of integers: a sequence has the same logits alone as in a padded batch."""
    model, batch = calibrated(), make_batch(7)
    with torch.no_grad():
        together = model(**batch)
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            alone = model(**{name: tensor[row : row + 1, :length] for name, tensor in batch.items()})
            assert torch.equal(alone[0], together[row])


def test_all_types_of_masks_mean_the_same(batch: Batch) -> None:
    model, mask = calibrated(), batch["attention_mask"]
    expected = model(**batch)
    for kind in (mask.bool(), mask.float(), 7 * mask):
        assert torch.equal(model(**{**batch, "attention_mask": kind}), expected)


def test_a_sequence_of_padding_alone_is_finite_in_both_directions(batch: Batch) -> None:
    model = calibrated().train()
    batch["attention_mask"][2] = 0
    found: list[Tensor] = []
    model.register_forward_hook(lambda *args: found.append(args[2]))
    task_loss(model, {**batch, "labels": torch.zeros(6, dtype=torch.int64)}).backward()
    assert torch.isfinite(found[0]).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_bias_of_the_scores_is_added_and_never_ignored() -> None:
    """Of one head, one query and one key: no other row of the context changes."""
    model = calibrated()
    tensors, bias = operands(model), torch.zeros(1, 4, 9, 9)
    bias[0, 0, 2, 3] = -1.5
    twin = attention(model)
    changed = (twin(*tensors, None, bias) != twin(*tensors)).any(-1).nonzero().tolist()
    assert changed == [[batch, 0, 2] for batch in range(len(tensors[0]))]
    bias[0, 0, 2, 3] = -1e9
    hidden = torch.zeros(1, 4, 9, 9, dtype=torch.bool)
    hidden[0, 0, 2, 3] = True
    assert torch.equal(twin(*tensors, None, bias), twin(*tensors, hidden))


def test_dropout_is_for_training_only() -> None:
    model = calibrated(dropout=0.5)
    twin, tensors = attention(model), operands(model)
    assert torch.equal(twin(*tensors), twin(*tensors))
    twin.train()
    assert not torch.equal(twin(*tensors), twin(*tensors))
    twin.dropout = 0.0
    assert torch.equal(twin(*tensors), twin.eval()(*tensors))


def test_it_starts_in_the_mode_of_what_it_replaces() -> None:
    for mode in (True, False):
        assert attention(prepared(make_classifier().train(mode), SCHEME)).training is mode


@pytest.mark.parametrize("late", ["attention_products", "value"])
def test_products_start_with_their_operands(late: str, batch: Batch) -> None:
    """Before the start step attention is the float one; a value in float has no integers to multiply."""
    slots = {**SCHEME.slots, late: replace(SCHEME.slots[late], start_step=2)}
    model = prepared(make_classifier(dropout=0.0), replace(SCHEME, slots=slots)).train()
    steps: list[int] = []
    plain = AttentionProducts.forward
    for _ in range(4):
        calls: list[object] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AttentionProducts, "forward", lambda *a, c=calls, **k: (c.append(a), plain(*a, **k))[1])
            model(**batch)
        steps.append(len(calls))
    assert steps == [2, 2, 0, 0]
    assert int(model.layers[0].value.get_buffer("observed_steps")) == 4


def test_a_copy_shares_nothing(batch: Batch) -> None:
    model = calibrated()
    expected = model(**batch)
    twin = copy.deepcopy(model)
    assert attention(twin)._projections == tuple(twin.get_submodule(f"layers.0.{n}") for n in ("query", "key", "value"))
    with torch.no_grad():
        twin.layers[0].value.weight.zero_()
        twin.layers[0].key.get_buffer("output_threshold").mul_(2)
    assert torch.equal(model(**batch), expected)
    assert not torch.equal(twin(**batch), expected)
