from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM, BertForSequenceClassification

from q8core.errors import CalibrationError, InputError, SchemeError
from q8core.quant import (
    PRESETS,
    QATEmbedding,
    QATLinear,
    Scheme,
    calibrate,
    convert,
    master_weights,
    prepare,
    preset,
    quantized_layers,
    slot_of,
)
from q8core.quant import layers as layers_module
from tests.quant.conftest import Batch, make_batch, make_classifier, make_qa, tiny_config
from tests.quant.test_asymmetric import symmetric


def linear(model: nn.Module, path: str) -> QATLinear:
    layer = model.get_submodule(path)
    assert isinstance(layer, QATLinear)
    return layer


QUERY, KEY, VALUE = (f"bert.encoder.layer.0.attention.self.{name}" for name in ("query", "key", "value"))


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_enabled_slot_is_replaced(name: str) -> None:
    scheme = preset(name)
    for model in (make_classifier(), make_qa()):
        paths = [path for path, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Embedding))]
        assert prepare(model, scheme) is model
        for path in paths:
            module = model.get_submodule(path)
            enabled = scheme.slots[slot_of(path)].enabled
            assert isinstance(module, (QATLinear, QATEmbedding)) == enabled, path
        assert isinstance(model.bert.embeddings.token_type_embeddings, nn.Embedding)


def test_parameters_keep_names_and_identity(classifier: BertForSequenceClassification) -> None:
    before = dict(classifier.named_parameters())
    prepare(classifier, preset("q8bert"))
    after = dict(classifier.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    make_classifier(seed=1).load_state_dict(master_weights(classifier))  # strict: a plain model's names


@pytest.mark.parametrize("name", list(PRESETS))
@pytest.mark.parametrize("autocast", [False, True])
def test_training_steps_lower_the_loss(name: str, autocast: bool, batch: Batch) -> None:
    model = prepare(make_classifier(), preset(name)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    losses: list[float] = []
    torch.manual_seed(0)
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_question_answering_trains_and_evaluates(batch: Batch) -> None:
    model = prepare(make_qa(), preset("q8bert")).train()
    positions = torch.tensor([1, 2, 3, 4, 5, 6])
    model(**batch, start_positions=positions, end_positions=positions + 1).loss.backward()
    out = model.eval()(**batch)
    assert out.start_logits.shape == out.end_logits.shape == (6, 16)


@pytest.mark.parametrize("name", list(PRESETS))
def test_quantized_logits_are_near_float_logits(name: str, batch: Batch) -> None:
    model = make_classifier()
    expected = model(**batch).logits
    prepare(model, preset(name))
    calibrate(model, [batch])
    got = model(**batch).logits
    assert not torch.equal(got, expected)
    assert (got - expected).abs().max() < 0.05 * expected.abs().max()


def test_uncalibrated_evaluation_names_the_module(classifier: BertForSequenceClassification, batch: Batch) -> None:
    model = prepare(classifier, preset("q8bert")).eval()
    with pytest.raises(CalibrationError, match=r"bert\.encoder\.layer\.0\.attention\.self\.query: the input range"):
        model(**batch)
    with pytest.raises(CalibrationError, match="never observed"):
        convert(model)


def test_early_evaluation_of_the_paper_preset_is_usable(batch: Batch) -> None:
    """The head of the original trains in float until step 200; an evaluation at step 1 must not be garbage."""
    model = make_classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    expected = model(**batch).logits
    prepare(model, preset("q8bert-paper")).train()
    model(**batch)
    assert (model.eval()(**batch).logits - expected).abs().max() < 0.05 * expected.abs().max()


def test_padding_does_not_widen_ranges() -> None:
    """What stands in padded positions changes no range under the default scheme; the paper's counts it."""
    batch = make_batch()
    widened = {**batch, "input_ids": torch.where(batch["attention_mask"] == 1, batch["input_ids"], 99)}
    for name, counts_padding in (("q8bert", False), ("q8bert-paper", True)):
        found: list[list[float]] = []
        for inputs in (batch, widened):
            model = make_classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
            with torch.no_grad():
                model.bert.embeddings.word_embeddings.weight[99, 3] = 200.0  # an outlier, if token 99 is seen
            prepare(model, preset(name)).train()
            model(**inputs)
            found.append([float(b) for n, b in model.named_buffers() if "query.input_" in n])
            assert found[-1]
        assert (found[0] != found[1]) == counts_padding


def test_calibration_ignores_padding_too() -> None:
    batch = make_batch()
    widened = {**batch, "input_ids": torch.where(batch["attention_mask"] == 1, batch["input_ids"], 99)}
    states: list[dict[str, Tensor]] = []
    for inputs in (batch, widened):
        model = prepare(make_classifier(), preset("static"))
        calibrate(model, [inputs])
        states.append({name: tensor for name, tensor in model.state_dict().items() if "threshold" in name})
    assert states[0].keys() == states[1].keys()
    for name, threshold in states[0].items():
        torch.testing.assert_close(threshold, states[1][name], rtol=1e-5, atol=0)


def test_mask_may_be_positional_and_is_forgotten(classifier: BertForSequenceClassification, batch: Batch) -> None:
    model = prepare(classifier, preset("q8bert")).train()
    context = linear(model, QUERY).context
    seen: list[Tensor | None] = []
    model.bert.register_forward_pre_hook(lambda *_: seen.append(context.mask))
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
    model = prepare(make_classifier(), preset("q8bert")).train()
    calls = spy(layers_module, "to_grid")
    model(**batch)
    activations = [call for call in calls if call[0].dim() == 3]
    assert len(activations) == 2 * 4  # layers x (query input, attention output, ffn in, ffn out)
    assert len(calls) - len(activations) == 2 * 6 + 2 * 2  # weights of the layers; weights and inputs of pooler, head
    tensors = convert(model.eval())
    for layer in range(2):
        scales = [
            tensors[f"bert.encoder.layer.{layer}.attention.self.{n}.input_scale"] for n in ("query", "key", "value")
        ]
        assert torch.equal(scales[0], scales[1])
        assert torch.equal(scales[0], scales[2])
    assert not any(name.startswith("input_") for name, _ in linear(model, KEY).named_buffers())


def test_shared_and_separate_ranges_agree(batch: Batch) -> None:
    logits: list[Tensor] = []
    for share in (True, False):
        model = prepare(make_classifier(), replace(preset("q8bert"), share_qkv_input=share))
        torch.manual_seed(0)
        model.train()(**batch)
        logits.append(model.eval()(**batch).logits)
    assert torch.equal(logits[0], logits[1])


def test_sharing_starts_at_the_first_layer_with_a_range(batch: Batch) -> None:
    scheme = replace(preset("q8bert"), overrides={QUERY: {"enabled": False}})
    model = prepare(make_classifier(), scheme).train()
    model(**batch)
    assert linear(model, VALUE).input_owner is linear(model, KEY)
    assert torch.isfinite(model.eval()(**batch).logits).all()


def test_a_copy_is_independent(batch: Batch) -> None:
    model = prepare(make_classifier(), preset("q8bert")).train()
    model(**batch)
    model.bert(**batch)  # not through the model's own hooks: the last shared input is still held
    assert linear(model, QUERY).context.shared is not None
    twin = copy.deepcopy(model)
    assert linear(twin, KEY).input_owner is linear(twin, QUERY)
    assert linear(twin, KEY).context is linear(twin, QUERY).context
    assert linear(twin, KEY).context is not linear(model, KEY).context
    assert torch.equal(twin.eval()(**batch).logits, model.eval()(**batch).logits)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin.train()(**make_batch(seed=5))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert linear(twin, QUERY).observed_steps == 3


def test_a_training_state_resumes_exactly() -> None:
    def steps(model: nn.Module, seeds: range) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        for seed in seeds:
            torch.manual_seed(seed)
            loss = model(**make_batch(seed), labels=torch.tensor([0, 1, 2, 0, 1, 2])).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    straight = prepare(make_classifier(), preset("q8bert")).train()
    steps(straight, range(4))
    first = prepare(make_classifier(), preset("q8bert")).train()
    steps(first, range(2))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = prepare(make_classifier(seed=9), preset("q8bert")).train()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    steps(resumed, range(2, 4))
    for (name, ours), (_, theirs) in zip(resumed.state_dict().items(), straight.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name


def test_loading_a_state_with_missing_ranges_is_an_error(batch: Batch) -> None:
    """The original only logged missing keys: half a model at random loaded without an error."""
    trained = prepare(make_classifier(), symmetric("q8bert")).train()
    trained(**batch)
    state = trained.state_dict()
    del state[f"{QUERY}.input_threshold"]
    with pytest.raises(RuntimeError, match=r"query\.input_threshold"):
        prepare(make_classifier(), symmetric("q8bert")).load_state_dict(state)


def test_calibration_is_the_maximum_over_batches() -> None:
    batches = [make_batch(seed) for seed in range(3)]
    model = make_classifier()
    expected = 0.0
    inputs: list[Tensor] = []
    hook = model.bert.encoder.layer[1].intermediate.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for batch in batches:
        model(**batch)
        expected = max(expected, float(inputs[-1].detach()[batch["attention_mask"] == 1].abs().max()))
    hook.remove()
    prepare(model, symmetric("static")).train()
    calibrate(model, iter(batches))
    layer = linear(model, "bert.encoder.layer.1.intermediate.dense")
    assert float(layer.get_buffer("input_threshold")) == pytest.approx(expected, rel=1e-6)
    assert layer.observed_steps == 3
    assert model.training  # its mode is restored
    assert layer.collectors is None


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_clipping_calibration_methods(method: str, batch: Batch) -> None:
    thresholds: dict[str, Tensor] = {}
    for how in ("max", method):
        model = prepare(make_classifier(), preset("static"))
        calibrate(model, [batch], method=how, percentile=99.0)  # type: ignore[arg-type]
        thresholds[how] = torch.stack([b for n, b in model.named_buffers() if "threshold" in n])
    assert (thresholds[method] <= thresholds["max"] * 1.0001).all()
    assert (thresholds[method] < thresholds["max"]).any()


def test_calibration_needs_data(classifier: BertForSequenceClassification, batch: Batch) -> None:
    with pytest.raises(SchemeError, match=r"no quantized layer; call prepare\(model, scheme\) first"):
        calibrate(classifier, [batch])
    model = prepare(classifier, preset("static"))
    with pytest.raises(CalibrationError, match="at least one batch"):
        calibrate(model, [])
    with torch.no_grad():
        model.bert.embeddings.LayerNorm.weight[0] = float("nan")
    with pytest.raises(CalibrationError, match=r"query: the input of this layer is infinite or NaN"):
        calibrate(model, [batch])
    assert all(layer.observed_steps == 0 and layer.collectors is None for layer in quantized_layers(model)[0].values())


def test_calibration_replaces_ranges_and_training_goes_on(batch: Batch) -> None:
    model = prepare(make_classifier(), symmetric("q8bert")).train()
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
    scheme = replace(base, overrides={"classifier": {"enabled": False}, "*.layer.1.*": {"weight": "per_tensor"}})
    model = prepare(make_classifier(), scheme)
    assert type(model.get_submodule("classifier")) is nn.Linear
    calibrate(model, [batch])
    assert linear(model, "bert.encoder.layer.0.output.dense").scales().weight.shape == (32,)
    assert linear(model, "bert.encoder.layer.1.output.dense").scales().weight.shape == (1,)
    with pytest.raises(SchemeError, match=r"override '\*\.layer\.7\.\*' matches no module"):
        prepare(make_classifier(), replace(base, overrides={"*.layer.7.*": {"enabled": False}}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_decoder": True}, "decoder"),
        ({"chunk_size_feed_forward": 4}, "chunk_size_feed_forward must be 0, not 4"),
    ],
)
def test_configurations_that_cannot_be_quantized(changes: dict[str, object], message: str) -> None:
    model = BertForSequenceClassification(tiny_config(**changes))
    with pytest.raises(SchemeError, match=message):
        prepare(model, preset("q8bert"))


def test_models_that_cannot_be_quantized(classifier: BertForSequenceClassification) -> None:
    with pytest.raises(SchemeError, match="BertForQuestionAnswering can be prepared, not BertForMaskedLM"):
        prepare(BertForMaskedLM(tiny_config()), preset("q8bert"))  # type: ignore[arg-type]
    with pytest.raises(SchemeError, match=r"must be float32, but .* is torch\.bfloat16"):
        prepare(copy.deepcopy(classifier).to(torch.bfloat16), preset("q8bert"))
    pruned = copy.deepcopy(classifier)
    pruned.bert.encoder.layer[0].attention.self.query = nn.Linear(32, 24)
    with pytest.raises(SchemeError, match="pruned attention heads"):
        prepare(pruned, preset("q8bert"))
    prepare(classifier, preset("q8bert"))
    with pytest.raises(SchemeError, match="already prepared"):
        prepare(classifier, preset("q8bert"))


def test_a_refused_scheme_leaves_the_model_alone(classifier: BertForSequenceClassification, batch: Batch) -> None:
    before = classifier(**batch).logits
    with pytest.raises(SchemeError):
        prepare(classifier, replace(preset("q8bert"), overrides={"typo": {"enabled": False}}))
    assert torch.equal(classifier(**batch).logits, before)


def test_gradient_checkpointing_is_refused(classifier: BertForSequenceClassification, batch: Batch) -> None:
    model = prepare(classifier, preset("q8bert")).train()
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
    with pytest.raises(SchemeError, match="gradient checkpointing"):
        model(**batch)


def test_unknown_modules_are_refused() -> None:
    with pytest.raises(SchemeError, match=r"lm_head\.dense is in no slot"):
        slot_of("lm_head.dense")


def test_ema_thresholds_follow_the_scheme() -> None:
    scheme: Scheme = replace(symmetric("q8bert"), ema_decay=0.5, ema_debias=False)
    model = prepare(make_classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), scheme).train()
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
