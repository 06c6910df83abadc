from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from q8core.errors import CalibrationError, InputError, SchemeError
from q8core.model.attention import AttentionProducts
from q8core.model.head import HeadSpec
from q8core.model.network import Network
from q8core.quant import Plan, Scheme, preset
from q8core.quant.qat import layers as layers_module
from q8core.quant.qat.attention import QATAttentionProducts
from q8core.quant.qat.convert import convert
from q8core.quant.qat.embedding import QATEmbedding
from q8core.quant.qat.layers import QATLinear
from q8core.quant.qat.prepare import calibrate, master_weights, prepare, quantized_layers
from q8core.quant.qat.weight_grid import WeightSteps
from q8core.training.losses import task_loss
from tests.models import EIGHT_BITS, FEW_BITS, small
from tests.quant.conftest import Batch, make_batch, make_classifier, make_qa, plan_for, prepared
from tests.quant.test_asymmetric import symmetric

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def linear(model: nn.Module, path: str) -> QATLinear:
    layer = model.get_submodule(path)
    assert isinstance(layer, QATLinear)
    return layer


QUERY, KEY, VALUE = (f"layers.0.{name}" for name in ("query", "key", "value"))


@pytest.mark.parametrize("name", [*EIGHT_BITS, *FEW_BITS])
def test_every_quantized_site_is_replaced_and_no_other(name: str) -> None:
    twins: dict[type[nn.Module], type[nn.Module]] = {
        nn.Linear: QATLinear,
        nn.Embedding: QATEmbedding,
        AttentionProducts: QATAttentionProducts,
    }
    for model in (make_classifier(), make_qa()):
        plan = plan_for(model, small(name))
        before = dict(model.named_modules())
        assert prepare(model, plan) is model
        after = {path: module for path, module in model.named_modules() if not isinstance(module, WeightSteps)}
        assert after.keys() == before.keys()
        for path, module in before.items():
            if path in plan.sites and plan.sites[path].scheme.quantizes:
                assert type(after[path]) is twins[type(module)], path
            else:
                assert after[path] is module, path
        assert type(model.token_type_embeddings) is nn.Embedding
        assert isinstance(model.word_embeddings, QATEmbedding)


def test_parameters_keep_names_and_identity(classifier: Network) -> None:
    before = dict(classifier.named_parameters())
    prepared(classifier, preset("q8bert"))
    after = dict(classifier.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    make_classifier(seed=1).load_state_dict(master_weights(classifier))  # strict: a plain network's names


@pytest.mark.parametrize("name", [*EIGHT_BITS, *FEW_BITS])
@pytest.mark.parametrize("autocast", [False, True])
def test_training_steps_lower_the_loss(name: str, autocast: bool, batch: Batch) -> None:
    model = prepared(make_classifier(), small(name)).train()
    if name in FEW_BITS:
        calibrate(model, [batch])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses: list[float] = []
    torch.manual_seed(0)
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = task_loss(model, {**batch, "labels": LABELS})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_question_answering_trains_and_evaluates(batch: Batch) -> None:
    model = prepared(make_qa(), preset("q8bert")).train()
    positions = torch.tensor([1, 2, 3, 4, 5, 6])
    task_loss(model, {**batch, "start_positions": positions, "end_positions": positions + 1}).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.eval()(**batch).shape == (6, 16, 2)


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_quantized_logits_are_near_float_logits(name: str, batch: Batch) -> None:
    model = make_classifier()
    expected = model(**batch)
    prepared(model, preset(name))
    calibrate(model, [batch])
    got = model(**batch)
    assert not torch.equal(got, expected)
    assert (got - expected).abs().max() < 0.05 * expected.abs().max()


def test_uncalibrated_evaluation_names_the_site(classifier: Network, batch: Batch) -> None:
    model = prepared(classifier, preset("q8bert")).eval()
    with pytest.raises(CalibrationError, match=r"layers\.0\.query: the input range"):
        model(**batch)
    with pytest.raises(CalibrationError, match="never observed"):
        convert(model)


def test_early_evaluation_of_the_paper_preset_is_usable(batch: Batch) -> None:
    """The head of the original trains in float until step 200; an evaluation at step 1 must not be garbage."""
    model = make_classifier(dropout=0.0)
    expected = model(**batch)
    prepared(model, preset("q8bert-paper")).train()
    model(**batch)
    assert (model.eval()(**batch) - expected).abs().max() < 0.05 * expected.abs().max()


def test_padding_does_not_widen_ranges() -> None:
    """What stands in padded positions changes no range under the default scheme; the paper's counts it."""
    batch = make_batch()
    widened = {**batch, "input_ids": torch.where(batch["attention_mask"] == 1, batch["input_ids"], 99)}
    for name, counts_padding in (("q8bert", False), ("q8bert-paper", True)):
        found: list[list[float]] = []
        for inputs in (batch, widened):
            model = make_classifier(dropout=0.0)
            with torch.no_grad():
                model.word_embeddings.weight[99, 3] = 200.0  # an outlier, if token 99 is seen
            prepared(model, preset(name)).train()
            model(**inputs)
            found.append([float(b) for n, b in model.named_buffers() if "query.input_" in n])
            assert found[-1]
        assert (found[0] != found[1]) == counts_padding


def test_calibration_ignores_padding_too() -> None:
    batch = make_batch()
    widened = {**batch, "input_ids": torch.where(batch["attention_mask"] == 1, batch["input_ids"], 99)}
    states: list[dict[str, Tensor]] = []
    for inputs in (batch, widened):
        model = prepared(make_classifier(), preset("static"))
        calibrate(model, [inputs])
        states.append({name: tensor for name, tensor in model.state_dict().items() if "threshold" in name})
    assert states[0].keys() == states[1].keys()
    for name, threshold in states[0].items():
        torch.testing.assert_close(threshold, states[1][name], rtol=1e-5, atol=0)


def test_mask_may_be_positional_and_is_forgotten(classifier: Network, batch: Batch) -> None:
    model = prepared(classifier, preset("q8bert")).train()
    context = linear(model, QUERY).context
    seen: list[Tensor | None] = []
    model.word_embeddings.register_forward_pre_hook(lambda *_: seen.append(context.mask))
    model(batch["input_ids"], batch["attention_mask"])
    model(batch["input_ids"])
    assert seen[0] is batch["attention_mask"]
    assert seen[1] is None
    with pytest.raises(InputError, match=r"must be \(batch, sequence\).*found \(6, 1, 1, 16\)"):
        model(batch["input_ids"], batch["attention_mask"][:, None, None, :])
    assert context.mask is None
    assert context.shared is None


def test_shared_input_range(batch: Batch, spy: Callable[[object, str], list[tuple[Tensor, ...]]]) -> None:
    """Query, key and value read one tensor: one range, and it is quantized once."""
    model = prepared(make_classifier(), preset("q8bert")).train()
    calls = spy(layers_module, "to_grid")
    model(**batch)
    activations = [call for call in calls if call[0].dim() == 3]
    assert len(activations) == 2 * 4  # layers x (query input, attention output, ffn in, ffn out)
    assert len(calls) - len(activations) == 2  # inputs of pooler and head
    tensors = convert(model.eval())
    for layer in range(2):
        scales = [tensors[f"layers.{layer}.{name}.input_scale"] for name in ("query", "key", "value")]
        assert torch.equal(scales[0], scales[1])
        assert torch.equal(scales[0], scales[2])
    assert not any(name.startswith("input_") for name, _ in linear(model, KEY).named_buffers())


def test_shared_and_separate_ranges_agree(batch: Batch) -> None:
    logits: list[Tensor] = []
    for share in (True, False):
        model = prepared(make_classifier(), replace(preset("q8bert"), share_qkv_input=share))
        torch.manual_seed(0)
        model.train()(**batch)
        logits.append(model.eval()(**batch))
    assert torch.equal(logits[0], logits[1])


def test_sharing_starts_at_the_first_layer_with_a_range(batch: Batch) -> None:
    scheme = replace(preset("q8bert"), overrides={QUERY: "float"})
    model = prepared(make_classifier(), scheme).train()
    model(**batch)
    assert type(model.get_submodule(QUERY)) is nn.Linear
    assert linear(model, VALUE).input_owner is linear(model, KEY)
    assert torch.isfinite(model.eval()(**batch)).all()


def test_a_copy_is_independent(batch: Batch) -> None:
    model = prepared(make_classifier(), preset("q8bert")).train()
    model(**batch)
    model.forward(**batch)  # not through the model's own hooks: the last shared input is still held
    assert linear(model, QUERY).context.shared is not None
    twin = copy.deepcopy(model)
    assert linear(twin, KEY).input_owner is linear(twin, QUERY)
    assert linear(twin, KEY).context is linear(twin, QUERY).context
    assert linear(twin, KEY).context is not linear(model, KEY).context
    assert torch.equal(twin.eval()(**batch), model.eval()(**batch))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin.train()(**make_batch(seed=5))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert linear(twin, QUERY).observed_steps == 3


def test_a_training_state_resumes_exactly() -> None:
    def steps(model: nn.Module, seeds: range) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        for seed in seeds:
            torch.manual_seed(seed)
            loss = task_loss(model, {**make_batch(seed), "labels": LABELS})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    straight = prepared(make_classifier(), preset("q8bert")).train()
    steps(straight, range(4))
    first = prepared(make_classifier(), preset("q8bert")).train()
    steps(first, range(2))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = prepared(make_classifier(seed=9), preset("q8bert")).train()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    steps(resumed, range(2, 4))
    for (name, ours), (_, theirs) in zip(resumed.state_dict().items(), straight.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name


def test_loading_a_state_with_missing_ranges_is_an_error(batch: Batch) -> None:
    """The original only logged missing keys: half a model at random loaded without an error."""
    trained = prepared(make_classifier(), symmetric("q8bert")).train()
    trained(**batch)
    state = trained.state_dict()
    del state[f"{QUERY}.input_threshold"]
    with pytest.raises(RuntimeError, match=r"query\.input_threshold"):
        prepared(make_classifier(), symmetric("q8bert")).load_state_dict(state)


def test_calibration_is_the_maximum_over_batches() -> None:
    batches = [make_batch(seed) for seed in range(3)]
    model = make_classifier()
    expected = 0.0
    inputs: list[Tensor] = []
    hook = model.layers[1].ffn_in.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for batch in batches:
        model(**batch)
        expected = max(expected, float(inputs[-1].detach()[batch["attention_mask"] == 1].abs().max()))
    hook.remove()
    prepared(model, symmetric("static").smoothed(0)).train()
    calibrate(model, iter(batches))
    layer = linear(model, "layers.1.ffn_in")
    assert float(layer.get_buffer("input_threshold")) == pytest.approx(expected, rel=1e-6)
    assert layer.observed_steps == 3
    assert model.training  # its mode is restored
    assert layer.collectors is None


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_clipping_calibration_methods(method: str, batch: Batch) -> None:
    thresholds: dict[str, Tensor] = {}
    for how in ("max", method):
        model = prepared(make_classifier(), preset("static"))
        calibrate(model, [batch], method=how, percentile=99.0)  # type: ignore[arg-type]
        thresholds[how] = torch.stack([b for n, b in model.named_buffers() if "threshold" in n])
    assert (thresholds[method] <= thresholds["max"] * 1.0001).all()
    assert (thresholds[method] < thresholds["max"]).any()


def test_calibration_needs_data(classifier: Network, batch: Batch) -> None:
    with pytest.raises(SchemeError, match=r"no quantized layer; call prepare\(model, scheme\) first"):
        calibrate(classifier, [batch])
    model = prepared(classifier, preset("static"))
    with pytest.raises(CalibrationError, match="at least one batch"):
        calibrate(model, [])
    with torch.no_grad():
        model.embedding_norm.weight[0] = float("nan")
    with pytest.raises(CalibrationError, match=r"query: the input of this layer is infinite or NaN"):
        calibrate(model, [batch])
    assert all(layer.observed_steps == 0 and layer.collectors is None for layer in quantized_layers(model)[0].values())


def test_calibration_replaces_ranges_and_training_goes_on(batch: Batch) -> None:
    model = prepared(make_classifier(), symmetric("q8bert")).train()
    for _ in range(3):
        model(**batch)
    calibrate(model, [batch, batch])
    layer = linear(model, QUERY)
    before = layer.get_buffer("input_threshold").clone()
    assert layer.observed_steps == 2
    model(**make_batch(seed=3))
    assert layer.observed_steps == 3
    assert layer.get_buffer("input_threshold") != before


def test_overrides_apply_and_must_match(batch: Batch) -> None:
    base = preset("q8bert")
    overrides = {"head.output": "float", "layers.1.ffn_*": {"weight": {"granularity": "tensor", "bits": 4}}}
    model = prepared(make_classifier(), replace(base, overrides=overrides))
    assert type(model.get_submodule("head.output")) is nn.Linear
    calibrate(model, [batch])
    assert linear(model, "layers.0.ffn_out").scales().weight.shape == (32,)
    assert linear(model, "layers.1.ffn_out").scales().weight.shape == (1,)
    assert linear(model, "layers.1.ffn_out").weight_quantizer.bits == 4
    with pytest.raises(SchemeError, match=r"override 'layers\.7\.\*' matches no site"):
        prepared(make_classifier(), replace(base, overrides={"layers.7.*": "float"}))


def test_networks_that_cannot_be_quantized(classifier: Network) -> None:
    plan = plan_for(classifier, preset("q8bert"))
    with pytest.raises(SchemeError, match="quantizes nothing: it has no scheme"):
        prepare(classifier, plan_for(classifier, None))
    with pytest.raises(SchemeError, match=r"must be float32, but .* is torch\.bfloat16"):
        prepare(copy.deepcopy(classifier).to(torch.bfloat16), plan)
    others = [
        plan_for(make_qa(), preset("q8bert")),
        plan_for(make_classifier(num_hidden_layers=3), preset("q8bert")),
        plan_for(make_classifier(num_labels=4), preset("q8bert")),
        Plan.of(replace(plan.spec, inner=65), plan.head, plan.scheme),
        Plan.of(plan.spec, HeadSpec("first", 3), plan.scheme),
    ]
    for other in others:
        with pytest.raises(SchemeError, match="the plan is that of another network"):
            prepare(classifier, other)
    pruned = copy.deepcopy(classifier)
    pruned.layers[0].query = nn.Linear(32, 24)
    with pytest.raises(SchemeError, match="the plan is that of another network"):
        prepare(pruned, plan)
    assert not any(isinstance(module, QATLinear) for module in (*classifier.modules(), *pruned.modules()))
    prepare(classifier, plan)
    with pytest.raises(SchemeError, match="already prepared"):
        prepare(classifier, plan)


def test_a_refused_scheme_leaves_the_network_alone(classifier: Network, batch: Batch) -> None:
    before, modules = classifier(**batch), list(classifier.modules())
    with pytest.raises(SchemeError):
        prepared(classifier, replace(preset("q8bert"), overrides={"typo": "float"}))
    with pytest.raises(SchemeError):
        prepare(classifier, plan_for(make_qa(), preset("q8bert")))
    assert all(a is b for a, b in zip(classifier.modules(), modules, strict=True))
    assert torch.equal(classifier(**batch), before)


def test_ema_thresholds_follow_the_scheme() -> None:
    scheme: Scheme = replace(symmetric("q8bert"), ema_decay=0.5, ema_debias=False)
    model = prepared(make_classifier(dropout=0.0), scheme).train()
    layer = linear(model, QUERY)
    inputs: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    thresholds: list[float] = []
    masks: list[Tensor] = []
    for seed in range(4):
        batch = make_batch(seed)
        model(**batch)
        masks.append(batch["attention_mask"] == 1)
        thresholds.append(float(layer.get_buffer("input_threshold")))
    peaks = [float(x[mask].abs().max()) for x, mask in zip(inputs, masks, strict=True)]
    assert thresholds[0] == pytest.approx(peaks[0])
    for (old, new), peak in zip(pairwise(thresholds), peaks[1:], strict=True):
        assert new == pytest.approx(0.5 * old + 0.5 * peak, rel=1e-6)
