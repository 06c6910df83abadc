"""The checkpoints that ship with the service: whole, honest about themselves, and equal to their simulation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

import service
from q8core.checkpoint import Checkpoint
from q8core.checkpoint.manifest import INT8_FILE
from q8core.engines import load_engine, self_test
from q8core.evaluate import engine_logits
from q8core.model.network import Network
from q8core.model.weights import load_network
from q8core.quant.qat.layers import QATLinear
from q8core.quant.qat.prepare import prepare
from q8core.tasks.classify import encode_text
from q8core.tasks.qa import best_answers, encode_windows
from q8core.tasks.task import Feature, make_feature, read_task
from q8core.training.batches import collate
from q8core.training.score import model_logits
from tests.arrays import as_tensors
from tests.models import logits_of

BUNDLED = Path(service.__file__).parent / "checkpoints"
NAMES = ("sst2-minilm-l6", "squad-minilm-l6")
SENTENCES = (
    "a gripping, funny film",
    "the plot is a mess and the jokes are worse",
    "it 's neither good nor bad , just long",
    "Nothing about it works; even the score feels tired, and by the second hour I was watching the exit sign instead.",
    "wow",
)
CONTEXT = (
    "The Eiffel Tower was built from 1887 to 1889 by the company of Gustave Eiffel. 🗼 It stands in Paris, "
    "on the Champ de Mars, and was the world's tallest structure until 1930."
)
QUESTIONS = ("Who built it?", "When?", "Where?", "Who?", "What is it?")


@pytest.fixture(params=NAMES)
def bundled(request: pytest.FixtureRequest) -> Checkpoint:
    return Checkpoint.open(BUNDLED / request.param)


def float_model(checkpoint: Checkpoint) -> BertForSequenceClassification | BertForQuestionAnswering:
    """Hugging Face's own model with the checkpoint's float tensors."""
    kind = BertForSequenceClassification if checkpoint.task == "classify" else BertForQuestionAnswering
    model = kind(BertConfig.from_pretrained(checkpoint.path, num_labels=len(checkpoint.labels) or 2))
    names, floats = checkpoint.config.file_names(checkpoint.task), checkpoint.float_tensors()[0]
    model.load_state_dict({names[name]: tensor for name, tensor in as_tensors(floats).items()}, strict=True)
    return model.eval()


def hugging_face_logits(model: Any, features: Sequence[Feature], checkpoint: Checkpoint) -> list[torch.Tensor]:
    """What Hugging Face's model says of the features as one padded batch."""
    with torch.inference_mode():
        logits = logits_of(model(**collate(features, checkpoint.task, with_targets=False)))
    if checkpoint.task == "classify":
        return list(logits)
    return [row[: len(feature)] for row, feature in zip(logits, features, strict=True)]


def simulation(checkpoint: Checkpoint) -> Network:
    """The fake-quantized twin that the checkpoint was converted from, rebuilt from its tensors."""
    plan = checkpoint.plan
    prepared = prepare(load_network(plan.spec, plan.head, as_tensors(checkpoint.float_tensors()[0])), plan)
    tensors = as_tensors(checkpoint.quantized_tensors())
    for path, layer in prepared.named_modules():
        if isinstance(layer, QATLinear):
            layer.observed_steps.fill_(1)
            if hasattr(layer, "input_low_threshold"):
                scale, zero_point = tensors[f"{path}.input_scale"][0], int(tensors[f"{path}.input_zero_point"])
                layer.get_buffer("input_low_threshold").copy_(scale * zero_point)
                layer.get_buffer("input_high_threshold").copy_(scale * (255 - zero_point))
            for name in ("input", "output"):
                if hasattr(layer, f"{name}_threshold"):
                    layer.get_buffer(f"{name}_threshold").copy_(tensors[f"{path}.{name}_scale"][0] * 127)
    return prepared.eval()


def sample_features(checkpoint: Checkpoint) -> list[Feature]:
    tokenizer = checkpoint.tokenizer()
    if checkpoint.task == "classify":
        encoded = [encode_text(tokenizer, text, None, 128) for text in SENTENCES]
        return [make_feature(e.input_ids, e.token_type_ids) for e in encoded]
    windows = [w for q in QUESTIONS for w in encode_windows(tokenizer, q, CONTEXT, 48, 16)]
    return [make_feature(w.input_ids, w.token_type_ids) for w in windows]


def test_it_holds_int8_weights_only_and_says_so(bundled: Checkpoint) -> None:
    floats, dequantized = bundled.float_tensors()
    assert dequantized
    assert bundled.manifest is not None
    assert not (bundled.path / "model.safetensors").exists()
    float_bytes = sum(tensor.size * 4 for tensor in floats.values())
    assert (bundled.path / INT8_FILE).stat().st_size <= 0.26 * float_bytes
    assert {"fp32", "dynamic", "int8"} <= bundled.manifest.scores.keys()


@pytest.mark.parametrize("backend", ["fp32", "int8"])
def test_it_replays_its_golden_answers(bundled: Checkpoint, backend: str) -> None:
    # on the kernel that recorded them: another may round one activation the other way
    result = self_test(load_engine(bundled, backend, "native" if backend == "int8" else "auto"), bundled)
    assert result.examples == len(bundled.golden) >= 4
    assert result.labels_equal


def test_the_fp32_engine_equals_hugging_face(bundled: Checkpoint) -> None:
    features = sample_features(bundled)
    padded = hugging_face_logits(float_model(bundled), features, bundled)
    packed = engine_logits(load_engine(bundled, "fp32"), features)
    for ours, theirs in zip(packed, padded, strict=True):
        assert float(np.abs(ours - theirs.numpy()).max()) < 1e-4


@pytest.mark.parametrize("kernel", ["fbgemm", "onednn", "native"])
def test_the_int8_engine_equals_its_simulation(bundled: Checkpoint, kernel: str) -> None:
    features = sample_features(bundled)
    simulated = model_logits(simulation(bundled), features, bundled.task)
    executed = engine_logits(load_engine(bundled, "int8", kernel), features)
    differences = [np.abs(ours - theirs) for ours, theirs in zip(executed, simulated, strict=True)]
    # One activation that rounds the other way moves all logits by a few hundredths, one of them by up to 0.6 (as float
    # weights do that are changed by a millionth); an input in which none does is the same.
    assert min(float(difference.max()) for difference in differences) < 1e-3
    assert max(float(np.median(difference)) for difference in differences) < 0.15
    assert max(float(difference.max()) for difference in differences) < 1
    for ours, theirs in zip(executed, simulated, strict=True):  # the answer is the same, or was all but as good
        chosen = np.take_along_axis(theirs, ours.argmax(0, keepdims=True), 0)
        assert float((theirs.max(0) - chosen).max()) < 0.15


def test_labels_of_sst2_dev_agree_between_simulation_and_engine(shared_data: Path) -> None:
    bundled = Checkpoint.open(BUNDLED / NAMES[0])
    task = read_task("sst2", shared_data / "glue" / "SST-2", bundled.tokenizer(), None, 512, with_train=False)
    features = task.dev_features()
    simulated = np.stack(model_logits(simulation(bundled), features, "classify")).argmax(1)
    executed = np.stack(engine_logits(load_engine(bundled, "int8"), features)).argmax(1)
    agreement = float((simulated == executed).mean())
    print(f"simulation and int8 engine give the same label on {agreement:.4%} of SST-2 dev")
    assert agreement >= 0.998
    assert bundled.manifest is not None
    accuracy = bundled.manifest.scores["int8"]["accuracy"]
    assert task.score(list(np.eye(2, dtype=np.float32)[executed]))["accuracy"] == pytest.approx(accuracy, abs=0.003)
    assert accuracy >= bundled.manifest.scores["fp32"]["accuracy"] - 0.005


def test_hugging_face_agrees_on_sst2_dev(shared_data: Path) -> None:
    bundled = Checkpoint.open(BUNDLED / NAMES[0])
    task = read_task("sst2", shared_data / "glue" / "SST-2", bundled.tokenizer(), None, 512, with_train=False)
    features = task.dev_features(200)
    padded = torch.stack(hugging_face_logits(float_model(bundled), features, bundled))
    packed = np.stack(engine_logits(load_engine(bundled, "fp32"), features))
    assert float(np.abs(packed - padded.numpy()).max()) < 1e-4


@pytest.mark.parametrize("backend", ["fp32", "int8"])
def test_it_knows_what_it_was_trained_for(backend: str) -> None:
    sentiment = Checkpoint.open(BUNDLED / NAMES[0])
    rows = engine_logits(load_engine(sentiment, backend), sample_features(sentiment)[:2])
    assert [sentiment.labels[int(row.argmax())] for row in rows] == ["positive", "negative"]
    qa = Checkpoint.open(BUNDLED / NAMES[1])
    windows = encode_windows(qa.tokenizer(), "Who built the Eiffel Tower?", CONTEXT)
    logits = engine_logits(load_engine(qa, backend), [make_feature(w.input_ids, w.token_type_ids) for w in windows])
    assert "Gustave Eiffel" in best_answers(windows, logits, CONTEXT)[0].answer
