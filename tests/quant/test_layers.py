"""The fake-quantized layers against independent float64 and int64 computations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from q8core.errors import CalibrationError, InputError
from q8core.quant import Quantizer, SiteScheme, preset
from q8core.quant.ops.arithmetic import dequantize, quantize, scale_from_threshold
from q8core.quant.qat import layers as layers_module
from q8core.quant.qat.context import ForwardContext
from q8core.quant.qat.embedding import QATEmbedding
from q8core.quant.qat.layers import QATLinear
from q8core.quant.quantizer import PER_CHANNEL, PER_TOKEN, STATIC, Granularity
from tests.quant.conftest import site_plan

PER_TENSOR = Quantizer()
STATIC_LINEAR = SiteScheme(weight=PER_CHANNEL, input=STATIC)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_linear(inputs: int, outputs: int, site: SiteScheme = STATIC_LINEAR, **scheme: object) -> QATLinear:
    linear = nn.Linear(inputs, outputs)
    with torch.no_grad():
        linear.weight.copy_(random(outputs, inputs, seed=1) * 0.05)
        linear.bias.copy_(random(outputs, seed=2))
    whole = replace(preset("q8bert"), **scheme)  # type: ignore[arg-type]
    context = ForwardContext(ignore_padding=True)
    return QATLinear(linear, plan=site_plan("the.layer", linear, site), scheme=whole, context=context).train()


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("size", [384, 768, 1536, 3072])
def test_evaluation_equals_int64_bit_for_bit(size: int, granularity: Granularity) -> None:
    site = SiteScheme(weight=Quantizer(granularity=granularity), input=STATIC, output=STATIC)
    layer = make_linear(size, 24, site)
    x = random(5, 7, size, seed=3)
    layer(x)
    layer.eval()
    scales = layer.scales()
    assert scales.input is not None
    assert scales.output is not None
    # numpy, from the formulas: float32 only where the definition says so
    sx, sw, sy = (scale.numpy() for scale in scales)
    x_q = np.clip(np.rint(x.numpy() * (np.float32(1) / sx)), -127, 127).astype(np.int64)
    w = layer.weight.detach().numpy()
    w_q = np.clip(np.rint(w * (np.float32(1) / sw.reshape(-1, 1))), -127, 127).astype(np.int64)
    acc = x_q @ w_q.T
    assert np.abs(acc).max() < 2**24  # above, float32 sums are no longer exact
    r = (sx * sw).astype(np.float32)
    b_q = np.rint(layer.bias.detach().numpy().astype(np.float64) / r.astype(np.float64))
    y = acc.astype(np.float32) * r + b_q.astype(np.float32) * r
    y_q = np.clip(np.rint(y * (np.float32(1) / sy)), -127, 127).astype(np.float32)
    assert np.array_equal(layer(x).detach().numpy(), y_q * sy)
    layer.plan = replace(layer.plan, scheme=replace(site, output=None))
    assert np.array_equal(layer(x).detach().numpy(), y)


def test_blocks_of_a_large_tensor_change_nothing() -> None:
    x = random(3, 1000, 96)  # more than one block, and not a multiple of it
    layer = make_linear(96, 160).train()
    together = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        together16 = layer.eval()(x)
        pieces16 = torch.stack([torch.cat([layer(part) for part in row.split(100)]) for row in x])
    pieces = torch.stack([torch.cat([layer(part) for part in row.split(100)]) for row in x])
    assert torch.equal(together, pieces)
    assert torch.equal(together16, pieces16)
    flipped = x.transpose(0, 1)  # not contiguous
    assert torch.equal(layer(flipped), together.transpose(0, 1))


def test_extreme_accumulators_are_exact_up_to_768() -> None:
    """K * 127**2 = 12.4 million at K = 768: the worst case still fits the 24 bits of a float32."""
    layer = make_linear(768, 4)
    with torch.no_grad():
        layer.weight.fill_(0.5)
        layer.weight[:, 0] = 0.25
        layer.bias.zero_()
    x = torch.full((3, 768), -2.0)
    x[1], x[2, 5] = 2.0, 1.0
    layer(x)
    layer.eval()
    scales = layer.scales()
    assert scales.input is not None
    r = scales.input * scales.weight
    q = quantize(layer.weight.detach(), scales.weight.reshape(-1, 1)).long()
    acc = quantize(x, scales.input).long() @ q.t()
    assert acc.abs().max() > 12_300_000
    assert torch.equal(layer(x), acc.float() * r)


def reference_linear(layer: QATLinear, x: Tensor) -> Tensor:
    """The same layer as a plain float32 graph: dequantized operands, rounding hidden from autograd."""

    def straight_through(value: Tensor, scale: Tensor) -> Tensor:
        return value + (dequantize(quantize(value.detach(), scale), scale) - value).detach()

    sw = layer.weight_grid().scale.reshape(-1, 1)
    if layer.plan.kind == "dynamic":
        sx = scale_from_threshold(x.detach().abs().amax(-1, keepdim=True))
        bias = layer.bias
    else:
        sx = layer.range_scale("input")
        bias = layer.bias  # at most half a step of the accumulator off
    y = F.linear(straight_through(x, sx), straight_through(layer.weight, sw), bias)
    return straight_through(y, layer.range_scale("output")) if layer.plan.output else y


SITE_KINDS = [
    SiteScheme(weight=PER_TENSOR, input=STATIC),
    SiteScheme(weight=PER_CHANNEL, input=STATIC),
    SiteScheme(weight=PER_CHANNEL, input=STATIC, output=STATIC),
    SiteScheme(weight=PER_CHANNEL, input=PER_TOKEN),
    SiteScheme(weight=PER_TENSOR, input=PER_TOKEN),
]


def kind_name(site: SiteScheme) -> str:
    assert site.weight is not None
    assert site.input is not None
    return f"{site.weight.granularity}-{site.input.granularity}{'-output' if site.output else ''}"


@pytest.mark.parametrize("site", SITE_KINDS, ids=kind_name)
def test_gradients_equal_a_plain_float_simulation(site: SiteScheme) -> None:
    layer = make_linear(48, 24, site)
    x = random(3, 5, 48, seed=4).requires_grad_()
    y = layer(x)
    direction = random(*y.shape, seed=5)
    got = torch.autograd.grad(y, [x, layer.weight, layer.bias], direction)
    expected_y = reference_linear(layer, x)
    expected = torch.autograd.grad(expected_y, [x, layer.weight, layer.bias], direction)
    step = float(layer.range_scale("output")) if site.output else 0.0
    torch.testing.assert_close(y, expected_y, atol=1e-4 + step * 1.001, rtol=1e-5)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_clamped_elements_pass_their_gradient_on() -> None:
    """The paper's estimator is the identity beyond the range as well."""
    layer = make_linear(8, 4, ema_decay=0.5)
    layer(torch.full((2, 8), 0.01))
    layer.eval()
    x = torch.full((2, 8), 100.0, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    sw = layer.scales().weight.reshape(-1, 1)
    w_hat = dequantize(quantize(layer.weight.detach(), sw), sw)
    torch.testing.assert_close(x.grad[0], w_hat.sum(0))


@pytest.mark.parametrize("site", SITE_KINDS, ids=kind_name)
def test_bfloat16_autocast_stays_close_to_float32(site: SiteScheme) -> None:
    layer = make_linear(48, 24, site)
    x = random(3, 5, 48, seed=4).requires_grad_()
    direction = random(3, 5, 24, seed=5)
    expected = torch.autograd.grad(y32 := layer(x), [x, layer.weight, layer.bias], direction)
    with torch.autocast("cpu", torch.bfloat16):
        y16 = layer(x)
    assert y16.dtype == torch.bfloat16
    got = torch.autograd.grad(y16, [x, layer.weight, layer.bias], direction.bfloat16())
    step = float(layer.range_scale("output")) if site.output else 0.0
    torch.testing.assert_close(y16.float(), y32, atol=0.02 + 1.01 * step, rtol=2**-6)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=0.02 * float(theirs.abs().max()), rtol=2**-6)


def test_bfloat16_operands_are_exact_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Tensor] = {}

    def capture(x: Tensor, weight: Tensor, bias: Tensor, **operands: Tensor) -> Tensor:
        seen.update(operands)
        return original(x, weight, bias, **operands)

    original = layers_module.quantized_linear
    monkeypatch.setattr(layers_module, "quantized_linear", capture)
    layer = make_linear(48, 24)
    x = random(6, 48, seed=4)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    scales = layer.scales()
    assert scales.input is not None
    assert seen["x_q"].dtype == seen["w_q"].dtype == torch.bfloat16
    assert torch.equal(seen["x_q"].float(), quantize(x, scales.input))
    assert torch.equal(seen["w_q"].float(), quantize(layer.weight.detach(), scales.weight.reshape(-1, 1)))


def test_float16_autocast_is_refused() -> None:
    with torch.autocast("cpu", torch.float16), pytest.raises(InputError, match=r"overflow in torch\.float16"):
        make_linear(8, 4)(random(2, 8))


def test_evaluation_before_calibration_is_an_error() -> None:
    """The original returned constant logits: scale 127 / 0."""
    layer = make_linear(8, 4).eval()
    with pytest.raises(CalibrationError, match=r"the\.layer: the input range was never observed"):
        layer(random(2, 8))


def test_evaluation_does_not_move_ranges() -> None:
    layer = make_linear(8, 4, replace(STATIC_LINEAR, output=STATIC))
    layer(random(4, 8))
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    assert set(before) == {"input_threshold", "output_threshold", "observed_steps"}
    layer.eval()
    layer(random(4, 8, seed=9) * 10)
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


def test_ranges_move_before_the_batch_is_quantized() -> None:
    layer = make_linear(8, 4)
    x = random(4, 8)
    y = layer(x)
    assert layer.get_buffer("input_threshold") == x.abs().max()
    assert int(layer.observed_steps) == 1
    layer.eval()
    assert torch.equal(y, layer(x))


def test_steps_before_start_observe_and_compute_in_float() -> None:
    """The original's head ran float until step 200 and left no range for an evaluation before that."""
    layer = make_linear(8, 4, replace(STATIC_LINEAR, output=STATIC, start_step=2))
    x = random(4, 8)
    exact = F.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), exact)
    assert torch.equal(layer(x), exact)
    assert layer.get_buffer("output_threshold") == exact.abs().max()
    quantized = layer(x)
    assert not torch.equal(quantized, exact)
    torch.testing.assert_close(quantized, exact, atol=0.1, rtol=0.1)
    early = make_linear(8, 4, replace(STATIC_LINEAR, start_step=2))
    early(x)
    torch.testing.assert_close(early.eval()(x), exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_zeros_are_harmless(granularity: Granularity) -> None:
    """The original divided by a zero range."""
    site = SiteScheme(weight=Quantizer(granularity=granularity), input=STATIC, output=STATIC)
    layer = make_linear(8, 4, site)
    with torch.no_grad():
        layer.weight[0] = 0
        if granularity == "tensor":
            layer.weight.zero_()
        layer.bias.zero_()
    y = layer(torch.zeros(3, 8))
    assert torch.equal(y, torch.zeros(3, 4))
    assert torch.isfinite(layer.eval()(random(3, 8))).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_activations_stop_training(bad: float) -> None:
    layer = make_linear(8, 4)
    x = random(2, 8)
    x[0, 0] = bad
    with pytest.raises(CalibrationError, match=r"the\.layer: the input of this layer is infinite or NaN at step 0"):
        layer(x)
    with pytest.raises(CalibrationError, match="never observed"):
        layer.eval()(random(2, 8))


def test_bad_weights_are_named() -> None:
    layer = make_linear(8, 4)
    with torch.no_grad():
        layer.weight[2, 3] = float("nan")
    with pytest.raises(CalibrationError, match=r"the\.layer\.weight has infinite or NaN values"):
        layer.scales()
    with pytest.raises(CalibrationError, match=r"the\.layer\.weight has infinite or NaN values"):
        layer(random(2, 8))
    layer = make_linear(8, 4)
    with torch.no_grad():
        layer.bias[1] = float("inf")
    with pytest.raises(CalibrationError, match=r"the\.layer: cannot quantize a bias"):
        layer(random(2, 8))


def test_weights_are_quantized_anew_in_evaluation() -> None:
    """The original kept integer weights from the last change of mode: loading weights later had no effect."""
    layer = make_linear(8, 4)
    x = random(2, 8)
    layer(x)
    layer.eval()
    before = layer(x)
    state = {**layer.state_dict(), "weight": random(4, 8, seed=7)}
    layer.load_state_dict(state)
    after = layer(x)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, F.linear(x, state["weight"], layer.bias), atol=0.1, rtol=0.1)


def test_dynamic_rows_do_not_see_each_other() -> None:
    layer = make_linear(16, 4, SiteScheme(weight=PER_CHANNEL, input=PER_TOKEN)).eval()
    x = random(6, 9, 16)
    x[0] *= 1000
    whole = layer(x)
    torch.testing.assert_close(layer(x[3:4, 2:5]), whole[3:4, 2:5], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [8, 5, 4, 3, 2])
def test_embedding_equals_lookup_in_the_quantized_table(bits: int, granularity: Granularity) -> None:
    table = nn.Embedding(50, 8, padding_idx=0)
    with torch.no_grad():
        table.weight.copy_(random(50, 8) * torch.arange(50).reshape(-1, 1))
    site = SiteScheme(weight=Quantizer(granularity=granularity, bits=bits))
    layer = QATEmbedding(table, plan=site_plan("table", table, site))
    ids = torch.tensor([[0, 3, 3], [7, 49, 1]])
    scale = layer.weight_grid().scale.reshape(-1, 1)
    integers = quantize(table.weight.detach(), scale)
    assert integers.abs().max() == 2 ** (bits - 1) - 1
    quantized_table = dequantize(integers, scale)
    rows = layer(ids)
    assert torch.equal(rows, F.embedding(ids, quantized_table))
    direction = random(2, 3, 8, seed=3)
    (got,) = torch.autograd.grad(rows, table.weight, direction)
    (expected,) = torch.autograd.grad(F.embedding(ids, table.weight, padding_idx=0), table.weight, direction)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_weight_of_few_bits_equals_int64_bit_for_bit(bits: int, granularity: Granularity) -> None:
    """From the formulas: the largest integer is 2^(b - 1) - 1, whatever is around it stays as with 8 bits."""
    site = SiteScheme(weight=Quantizer(bits=bits, granularity=granularity), input=STATIC)
    layer, x = make_linear(96, 24, site), random(5, 7, 96, seed=3)
    found = layer(x).detach().numpy()
    w = layer.weight.detach().numpy()
    largest = np.abs(w).max(axis=1, keepdims=True) if granularity == "channel" else np.abs(w).max()
    sw = (largest / np.float32(2 ** (bits - 1) - 1)).astype(np.float32)
    w_q = np.rint(w * (np.float32(1) / sw)).astype(np.int64)
    assert set(np.unique(w_q)) <= set(range(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1)))
    assert np.abs(w_q).max() == 2 ** (bits - 1) - 1
    sx = np.abs(x.numpy()).max() / np.float32(127)
    x_q = np.rint(x.numpy() * (np.float32(1) / sx)).astype(np.int64)
    r = (sx * sw.reshape(-1)).astype(np.float32)
    b_q = np.rint(layer.bias.detach().numpy().astype(np.float64) / r.astype(np.float64))
    assert np.array_equal(found, (x_q @ w_q.T).astype(np.float32) * r + b_q.astype(np.float32) * r)


def test_repr_tells_the_quantization() -> None:
    assert "weight: 8 bits per channel, input: 8 bits, symmetric, static" in repr(make_linear(8, 4))
    assert "quantized output" in repr(make_linear(8, 4, replace(STATIC_LINEAR, output=STATIC)))
    table = nn.Embedding(5, 4)
    layer = QATEmbedding(table, plan=site_plan("t", table, SiteScheme(weight=Quantizer(bits=3))))
    assert "weight: 3 bits per tensor" in repr(layer)
