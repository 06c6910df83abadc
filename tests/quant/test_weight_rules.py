"""Grids and integers of weights by every rule, against NumPy in float64, in training, conversion and a lookup."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from q8core.errors import CalibrationError, SchemeError
from q8core.model.head import HeadSpec
from q8core.quant import Plan, Quantizer, SiteScheme, preset
from q8core.quant.codes import Codebook
from q8core.quant.qat.context import ForwardContext
from q8core.quant.qat.convert import convert
from q8core.quant.qat.embedding import QATEmbedding
from q8core.quant.qat.layers import QATLinear
from q8core.quant.qat.prepare import calibrate
from q8core.quant.qat.weight_grid import WeightGrid, WeightSteps, spread, weight_grid, weight_integers
from q8core.quant.quantizer import STATIC
from tests.quant.conftest import make_batch, make_classifier, plan_for, prepared, site_plan
from tests.quant.integer_reference import IntegerBert

MEAN, TERNARY = Quantizer(bits=1, rule="mean"), Quantizer(bits=2, rule="twn")
RULES = (
    *(Quantizer(bits=bits, rule="mse") for bits in (2, 3, 4, 8)),
    *(Quantizer(bits=bits, rule="learned") for bits in (2, 4)),
    *(Quantizer(bits=bits, grid="asymmetric") for bits in (2, 3, 4)),
    TERNARY,
    MEAN,
)
GRANULARITIES: tuple[dict[str, Any], ...] = (
    {"granularity": "tensor"},
    {"granularity": "group", "groups": 4},
    {"granularity": "channel"},
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_of(seed: int, rows: int = 12, columns: int = 30) -> Tensor:
    """Rows with an outlier, of one sign, of zeros, tiny ones, and ones that end in zeros."""
    weight = random(rows, columns, seed=seed) * 0.05
    weight[1, 3] = 1.0
    weight[2] = weight[2].abs()
    weight[3] = -weight[3].abs()
    weight[4] = 0.0
    weight[5] *= 1e-3
    weight[6, 7:] = 0.0
    weight[7, 0] = -0.0
    return weight


def integers(weight: Tensor, quantizer: Quantizer, grid: WeightGrid) -> Tensor:
    return weight_integers(weight, quantizer, grid.rows(len(weight)), torch.float32)


def real(weight: Tensor, quantizer: Quantizer, grid: WeightGrid) -> Tensor:
    return integers(weight, quantizer, grid) * spread(grid.scale, len(weight)).reshape(-1, 1)


def all_cases(test: Any) -> Any:
    with_granularity = [replace(rule, **each) for rule in RULES for each in GRANULARITIES]
    name = lambda q: f"{q.bits}-{q.rule}-{q.grid}-{q.granularity}"  # noqa: E731
    return pytest.mark.parametrize("quantizer", with_granularity, ids=name)(test)


@all_cases
def test_integers_stay_in_their_grid_and_are_found_again(quantizer: Quantizer) -> None:
    """What is on the grid already has the same integers, and the codes in a file give them back."""
    for seed in range(20):
        weight = weight_of(seed)
        grid = weight_grid(weight, quantizer, "w")
        assert len(grid.scale) == quantizer.scales(len(weight))
        assert (grid.scale > 0).all()
        q = integers(weight, quantizer, grid)
        zero = np.zeros((1, 1)) if grid.zero_point is None else spread(grid.zero_point, len(weight)).numpy()[:, None]
        largest = max(1, 2 ** (quantizer.bits - 1) - 1)
        low, high = (0, 2**quantizer.bits - 1) if quantizer.grid == "asymmetric" else (-largest, largest)
        assert ((q.numpy() + zero >= low) & (q.numpy() + zero <= high)).all()
        assert torch.equal(integers(real(weight, quantizer, grid), quantizer, grid), q)
        if quantizer.bits <= 4:
            points = None if grid.zero_point is None else zero.reshape(-1).astype(np.int8)
            book = Codebook(Codebook.of(quantizer.bits, quantizer.grid).levels, points)
            stored = book.encode(q.numpy().astype(np.int8))
            assert np.array_equal(book.decode(stored, weight.shape[1]), q.numpy())


@all_cases
def test_a_lookup_equals_the_table(quantizer: Quantizer) -> None:
    """To the bit, though rows with a range of their own are quantized without the others."""
    table = nn.Embedding(12, 30)
    with torch.no_grad():
        table.weight.copy_(weight_of(3))
    layer = QATEmbedding(table, plan=site_plan("t", table, SiteScheme(weight=quantizer)))
    expected = real(table.weight.detach(), quantizer, layer.weight_grid())
    ids = torch.tensor([[0, 3, 3, 11], [7, 4, 1, 2]])
    assert torch.equal(layer(ids).detach(), expected[ids])
    direction = random(2, 4, 30, seed=5)
    (found,) = torch.autograd.grad(layer(ids), table.weight, direction)
    assert torch.equal(found, torch.zeros(12, 30).index_add(0, ids.reshape(-1), direction.reshape(8, 30)))


@all_cases
def test_a_linear_equals_float64_and_its_conversion(quantizer: Quantizer) -> None:
    linear = nn.Linear(30, 12)
    with torch.no_grad():
        linear.weight.copy_(weight_of(4))
    site = SiteScheme(weight=quantizer, input=STATIC)
    context = ForwardContext(ignore_padding=True)
    layer = QATLinear(linear, plan=site_plan("l", linear, site), scheme=preset("q8bert"), context=context).train()
    x = random(5, 7, 30, seed=2)
    y = layer(x)
    evaluated = layer.eval()(x)
    if quantizer.rule != "mse":  # whose training makes turns instead of searching
        assert torch.equal(y, evaluated)
    w_hat = real(linear.weight.detach(), quantizer, layer.weight_grid()).double()
    scale_x = x.abs().max().double() / 127
    r = scale_x * spread(layer.weight_grid().scale, 12).double()
    bias_hat = (linear.bias.double() / r).round() * r
    expected = (x.double() / scale_x).round() * scale_x @ w_hat.T + bias_hat
    torch.testing.assert_close(evaluated.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_learned_step_is_drawn_to_the_least_squared_error() -> None:
    weight = weight_of(11)
    steps = WeightSteps(weight, Quantizer(bits=4, rule="learned_mse", granularity="channel"), "l", follows=True)
    assert steps.log_step is not None
    with torch.no_grad():
        steps.log_step += 0.3
    before = steps.grid(weight).scale.double()
    q = (weight.double() / before[:, None]).round().clamp(-7, 7)
    best = (weight.double() * q).sum(1) / q.square().sum(1)
    best[4] = before[4]  # a row of zeros has no error
    drawn = steps.grid(weight, 0).scale
    torch.testing.assert_close(drawn.double(), before**0.9 * best**0.1, rtol=1e-5, atol=0)
    assert torch.equal(steps.grid(weight).scale, drawn), "only training draws"
    assert float((drawn / before - 1).abs().max()) > 0.005


def test_asymmetric_by_hand() -> None:
    """In float64, from the formulas: the range of a row holds 0, and the zero point is an integer."""
    weight = torch.cat([weight_of(seed) for seed in range(10)])
    for bits in (2, 3, 4):
        quantizer = Quantizer(bits=bits, grid="asymmetric", granularity="channel")
        grid = weight_grid(weight, quantizer, "w")
        w = weight.double().numpy()
        low, high = np.minimum(w.min(1), 0), np.maximum(w.max(1), 0)
        steps = np.where(high > low, (high - low) / (2**bits - 1), 1.0)
        zero = np.rint(-low / steps)
        codes = np.clip(np.rint(w / steps[:, None]) + zero[:, None], 0, 2**bits - 1)
        assert grid.zero_point is not None
        np.testing.assert_allclose(grid.scale.numpy(), steps, rtol=1e-6)
        assert np.array_equal(grid.zero_point.numpy(), zero)
        found = integers(weight, quantizer, grid).numpy() + zero[:, None]
        assert (found != codes).mean() < 1e-3  # where float32 sees a tie that float64 does not
        assert np.abs(found - codes).max() <= 1


def test_ternary_by_hand() -> None:
    weight = torch.tensor([[0.1, -0.9, 0.5, 0.0, 1.0], [0.2, -0.2, 0.2, 0.2, -0.2], [0.0] * 5])
    grid = weight_grid(weight, replace(TERNARY, granularity="channel"), "w")
    # the border of the first row is 0.7 * 0.5
    assert integers(weight, TERNARY, grid).tolist() == [[0, -1, 1, 0, 1], [1, -1, 1, 1, -1], [0] * 5]
    torch.testing.assert_close(grid.scale, torch.tensor([0.8, 0.2, 1.0]))
    whole = weight_grid(weight, TERNARY, "w")
    assert float(whole.scale) == pytest.approx((0.9 + 0.5 + 1.0 + 5 * 0.2) / 8)  # the border is 0.7 * 3.5 / 15


def test_one_bit_by_hand() -> None:
    weight = torch.tensor([[0.1, -0.3, 0.0, -0.0], [0.0] * 4])
    grid = weight_grid(weight, replace(MEAN, granularity="channel"), "w")
    assert integers(weight, MEAN, grid).tolist() == [[1, -1, 1, 1], [1] * 4]
    assert grid.scale.tolist() == pytest.approx([0.1, 2.0**-20])


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 100), columns=st.integers(1, 400))
def test_rows_do_not_see_each_other(seed: int, columns: int) -> None:
    weight = random(9, columns, seed=seed)
    for rule in RULES:
        quantizer = replace(rule, granularity="channel")
        together = weight_grid(weight, quantizer, "w")
        alone = [weight_grid(row.unsqueeze(0), quantizer, "w") for row in weight]
        assert torch.equal(torch.cat([each.scale for each in alone]), together.scale)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.bits}-{rule.rule}")
def test_what_is_not_finite_is_refused(rule: Quantizer, bad: float) -> None:
    weight = weight_of(0)
    weight[2, 2] = bad
    for each in GRANULARITIES:
        with pytest.raises(CalibrationError, match=r"^a\.b\.weight has infinite or NaN values"):
            weight_grid(weight, replace(rule, **each), "a.b")


def everywhere(quantizer: Quantizer) -> Any:
    base = preset("q8bert")
    slots = {slot: replace(s, weight=quantizer) if s.weight else s for slot, s in base.slots.items()}
    return replace(base, name="everywhere", slots=slots)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.bits}-{rule.rule}-{rule.grid}")
def test_whole_model_equals_an_integer_bert(rule: Quantizer) -> None:
    """Also in groups of rows; a head of 3 rows has its own."""
    scheme = everywhere(replace(rule, granularity="group", groups=2))
    whole = {"weight": {"groups": 0, "granularity": "channel"}}
    network = make_classifier()
    model = prepared(network, replace(scheme, overrides={"head.output": whole}))
    calibrate(model, [make_batch(seed) for seed in range(3)])
    tensors = convert(model.eval())
    plan = plan_for(make_classifier(), replace(scheme, overrides={"head.output": whole}))
    batch = make_batch(11)
    with torch.no_grad():
        got = model(**batch).numpy()
    expected = IntegerBert(plan, tensors).logits(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
    assert np.median(np.abs(got - expected)) < 1e-5 * np.abs(expected).max()
    assert np.abs(got - expected).max() < 5e-2 * np.abs(expected).max()


def test_groups_that_do_not_divide_the_rows_are_refused_with_the_site() -> None:
    network = make_classifier()
    head = HeadSpec("first", 3, "tanh")
    scheme = everywhere(Quantizer(bits=4, granularity="group", groups=3))
    with pytest.raises(SchemeError, match=r"word_embeddings: weight\.groups is 3, which does not divide its 100 rows"):
        Plan.of(network.spec, head, scheme)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"bits": 5, "grid": "asymmetric"}, r"grid with 5 bits is 'asymmetric'; allowed: symmetric, because zero"),
        ({"bits": 8, "grid": "asymmetric"}, r"at most 4 bits"),
        ({"bits": 4, "grid": "asymmetric", "rule": "mse"}, r"rule of an asymmetric grid is 'mse'; allowed: max"),
        ({"bits": 1}, r"bits with rule 'max' is 1; allowed: 2 to 8"),
        ({"bits": 3, "rule": "twn"}, r"bits with rule 'twn' is 3; allowed: 2"),
        ({"bits": 2, "rule": "mean"}, r"bits with rule 'mean' is 2; allowed: 1"),
        ({"rule": "ema"}, r"weight\.rule is 'ema'; allowed: max, mse, learned, learned_mse, twn, mean"),
        ({"bits": 1, "rule": "mean", "gradient": "masked"}, r"gradient with rule 'mean' is 'masked'"),
    ],
)
def test_weights_that_do_not_fit_together_are_refused(values: dict[str, Any], found: str) -> None:
    base = preset("q8bert")
    slots = {**base.slots, "ffn_in": replace(base.slots["ffn_in"], weight=Quantizer(**values))}
    with pytest.raises(SchemeError, match=found):
        replace(base, slots=slots)


def test_a_tables_steps_are_not_drawn() -> None:
    base, weight = preset("q8bert"), Quantizer(bits=4, rule="learned_mse", granularity="channel")
    slots = {**base.slots, "word_embeddings": replace(base.slots["word_embeddings"], weight=weight)}
    with pytest.raises(SchemeError, match=r"weight\.rule of a table is 'learned_mse', which is for linears"):
        replace(base, slots=slots)
