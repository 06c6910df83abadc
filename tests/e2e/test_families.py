"""Every family from a Hugging Face folder to answers, with transformers as oracle: engines, schemes, service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer

from q8core.bench.stock import stock_class
from q8core.checkpoint import Checkpoint, write_checkpoint
from q8core.engines import TokenBatch, build_engine, load_engine
from q8core.errors import InputError
from q8core.export.onnx_model import export_onnx
from q8core.model.families import FAMILIES
from q8core.model.head import TaskKind
from q8core.quant import preset
from q8core.quant.qat.convert import arrays, convert
from q8core.quant.qat.prepare import calibrate, prepare
from q8core.tasks.classify import encode_text
from q8core.tasks.examples import ClassifyData, TextExample
from q8core.tasks.task import ClassifyTask
from q8core.tokenizer import load_tokenizer
from q8core.training.finetune import finetune
from q8core.training.losses import task_loss
from q8core.training.qat import train_quantized
from service.http.app import create_app
from service.lifecycle import State
from service.settings import Settings
from tests import tokenizer_folders
from tests.conftest import save_tiny
from tests.engines.conftest import KERNELS, assert_same_integers
from tests.model.oracle import AUTO, logits_of, theirs
from tests.models import config_of, network_of, plan_of
from tests.service.conftest import open_registry
from tests.training.test_loop import CONFIG, make_task

KINDS: tuple[TaskKind, ...] = ("classify", "qa")
TEXTS = ["a very good film", "the plot was bad, the actor was not", "great", "who was born in paris? " * 6]
SIZES: dict[str, int] = {
    "hidden_size": 32, "dim": 32, "embedding_size": 24, "num_hidden_layers": 2, "n_layers": 2, "num_attention_heads": 2,
    "n_heads": 2, "intermediate_size": 64, "hidden_dim": 64, "max_position_embeddings": 66, "type_vocab_size": 2,
}  # fmt: skip
every_family = pytest.mark.parametrize("model_type", FAMILIES)
every_task = pytest.mark.parametrize("kind", KINDS)


def write_model(folder: Path, model_type: str, kind: TaskKind) -> Path:
    """Save a random model of a family with a tokenizer of its kind."""
    if model_type in tokenizer_folders.FAMILIES:
        tokenizer_folders.write_folder(folder, tokenizer_folders.FAMILIES[model_type](), model_type, {})
    else:  # as BERT's
        save_tiny(folder, kind)
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size(with_added_tokens=True)
    sizes = {name: size for name, size in SIZES.items() if name in FAMILIES[model_type].sizes}
    if model_type in ("roberta", "xlm-roberta", "camembert"):
        sizes["type_vocab_size"] = 1
    model = theirs(model_type, kind, "eager", **{**sizes, "vocab_size": vocabulary, "pad_token_id": pad_of(model_type)})
    if kind == "classify":
        model.config.id2label = {0: "negative", 1: "neutral", 2: "positive"}
        model.config.label2id = {label: i for i, label in model.config.id2label.items()}
    model.save_pretrained(folder)
    return folder


def pad_of(model_type: str) -> int:
    return int(FAMILIES[model_type].defaults["pad_token_id"] or 0)


def sequences(folder: Path, *, pairs: bool = True) -> list[tuple[list[int], list[int]]]:
    tokenizer = Checkpoint.open(folder).tokenizer()
    found = [encode_text(tokenizer, text, None, 64) for text in TEXTS]
    if pairs:
        found += [encode_text(tokenizer, TEXTS[0], text, 64) for text in TEXTS[1:]]
    return [(one.input_ids, one.token_type_ids) for one in found]


def expected(model: Any, inputs: Sequence[tuple[list[int], list[int]]]) -> list[Tensor]:
    """The oracle: one sequence after another, without padding."""
    found: list[Tensor] = []
    with torch.no_grad():
        for ids, types in inputs:
            call: dict[str, Tensor] = {"input_ids": torch.tensor([ids])}
            if getattr(model.config, "type_vocab_size", 0) > 1:
                call["token_type_ids"] = torch.tensor([types])
            found.append(logits_of(model(**call))[0])
    return found


def answers(engine: Any, inputs: Sequence[tuple[list[int], list[int]]]) -> list[Tensor]:
    batch = TokenBatch.pack(inputs)
    return [torch.from_numpy(logits) for logits in batch.split(engine.infer(batch), engine.reads)]


@every_family
@every_task
def test_fp32_engines_equal_transformers(model_type: str, kind: TaskKind, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "it", model_type, kind)
    model, inputs = AUTO[kind].from_pretrained(folder).eval(), sequences(folder)
    wanted = expected(model, inputs)
    for kernel in ("native", "onednn"):
        found = answers(load_engine(folder, "fp32", kernel), inputs)
        for ours, oracle in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, oracle, rtol=0, atol=1e-4)


@every_family
@every_task
def test_what_is_compared_with_is_transformers_model_of_the_family(
    model_type: str, kind: TaskKind, tmp_path: Path
) -> None:
    """A BERT made of another family's folder would have random weights, with a warning at most."""
    stock = stock_class(kind).from_pretrained(write_model(tmp_path / "it", model_type, kind))
    assert type(stock).__name__ == FAMILIES[model_type].heads[kind].architecture


@every_family
def test_the_longest_text_is_read_and_a_longer_one_is_not(model_type: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "it", model_type, "classify")
    model, engine = AUTO["classify"].from_pretrained(folder).eval(), load_engine(folder, "fp32")
    longest = Checkpoint.open(folder).config.spec.positions
    assert longest == (64 if FAMILIES[model_type].spec({**FAMILIES[model_type].defaults}).first_position else 66)
    ids = [5 + i % 20 for i in range(longest)]
    [found] = answers(engine, [(ids, [0] * longest)])
    [wanted] = expected(model, [(ids, [0] * longest)])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    with pytest.raises(InputError, match=f"has {longest + 1} tokens; this model takes at most {longest}"):
        answers(engine, [([*ids, 5], [0] * (longest + 1))])


@every_family
@every_task
@pytest.mark.parametrize("scheme", ["static", "static-attention", "dynamic"])
def test_every_kernel_computes_the_simulation(model_type: str, kind: TaskKind, scheme: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "it", model_type, kind)
    model, inputs = AUTO[kind].from_pretrained(folder).eval(), sequences(folder)
    network, plan = network_of(model), plan_of(model, preset(scheme))
    prepare(network, plan)
    batches = [padded(inputs, plan.spec.pad_token or 0)]
    if scheme != "dynamic":
        calibrate(network, batches)
    network.eval()
    with torch.no_grad():
        simulated = [network(torch.tensor([ids]), None, torch.tensor([types]))[0] for ids, types in inputs]
    tensors = arrays(convert(network))
    assert tensors.keys() == plan.tensors.keys()
    for kernel in KERNELS:
        found = answers(build_engine(plan, tensors, kernel), inputs)
        if kernel == "native":  # exponentials and sums round in another order
            assert all(float((a - b).abs().max()) < 0.2 for a, b in zip(found, simulated, strict=True))
        else:
            assert_same_integers(found, simulated)


def padded(inputs: Sequence[tuple[list[int], list[int]]], pad: int) -> dict[str, Tensor]:
    longest = max(len(ids) for ids, _ in inputs)
    batch = {
        name: torch.zeros(len(inputs), longest, dtype=torch.int64) for name in ("attention_mask", "token_type_ids")
    }
    batch["input_ids"] = torch.full((len(inputs), longest), pad)
    for row, (ids, types) in enumerate(inputs):
        batch["input_ids"][row, : len(ids)] = torch.tensor(ids)
        batch["token_type_ids"][row, : len(ids)] = torch.tensor(types)
        batch["attention_mask"][row, : len(ids)] = 1
    return batch


@every_family
def test_it_is_trained_quantized_and_served(model_type: str, tmp_path: Path) -> None:
    """Fine-tuned from an encoder, trained with quantization, opened, served; transformers reads what is written."""
    source = write_model(tmp_path / "source", model_type, "classify")
    whole = AUTO["classify"].from_pretrained(source)
    whole.base_model.save_pretrained(source)
    task = make_task(source, 24)
    finetune(str(source), task, CONFIG, tmp_path / "fp32", "made up")
    train_quantized(str(tmp_path / "fp32"), task, CONFIG, "q8bert", tmp_path / "int8", "made up", True)
    opened = Checkpoint.open(tmp_path / "int8")
    assert opened.manifest is not None
    assert opened.manifest.family == model_type
    inputs = sequences(tmp_path / "int8")
    model = AUTO["classify"].from_pretrained(tmp_path / "int8").eval()
    for ours, oracle in zip(answers(load_engine(opened, "fp32"), inputs), expected(model, inputs), strict=True):
        torch.testing.assert_close(ours, oracle, rtol=0, atol=1e-4)
    AutoTokenizer.from_pretrained(tmp_path / "int8")
    with TestClient(create_app(Settings(threads=1), open_registry(tmp_path / "int8"))) as client:
        assert client.app.state.service.lifecycle.wait_until_settled(240) is State.READY  # pyright: ignore
        for backend in ("fp32", "int8"):
            answer = client.post("/classify", json={"inputs": TEXTS, "backend": backend})
            assert answer.status_code == 200, answer.text


@every_family
@every_task
def test_the_exported_model_gives_our_logits(model_type: str, kind: TaskKind, tmp_path: Path) -> None:
    """By onnx's own interpreter: its products are exact, unlike those of runtimes on CPUs without VNNI."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    from onnx.reference import ReferenceEvaluator

    source, output = write_model(tmp_path / "source", model_type, kind), tmp_path / "int8"
    model, inputs = AUTO[kind].from_pretrained(source).eval(), sequences(source)
    network, plan, config = network_of(model), plan_of(model, preset("static")), config_of(model)
    calibrate(prepare(network, plan), [padded(inputs, plan.spec.pad_token or 0)])
    labels = config.labels if kind == "classify" else ()
    write_checkpoint(
        output, name="it", config=config, task=kind, labels=labels, max_length=64, scheme=preset("static"),
        tensors=arrays(convert(network)), tokenizer_folder=source,
    )  # fmt: skip
    opened, file = Checkpoint.open(output), tmp_path / "model.onnx"
    export_onnx(opened, file)
    evaluator: Any = ReferenceEvaluator(str(file))
    for (ids, types), ours in zip(inputs, answers(load_engine(opened, "int8", "fbgemm"), inputs), strict=True):
        given = {"input_ids": [ids], "attention_mask": [[1] * len(ids)], "token_type_ids": [types]}
        found = evaluator.run(None, {name: np.array(given[name]) for name in evaluator.input_names})
        theirs = found[0][0] if kind == "classify" else np.stack([out[0] for out in found], axis=1)
        np.testing.assert_allclose(theirs, ours.numpy(), atol=0.05)


@every_family
def test_training_pads_with_the_models_own_token(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of RoBERTa and MPNet it is 1: a 0 would be their first token, whose row is trained."""
    folder, pads = write_model(tmp_path / "it", model_type, "classify"), set[int]()

    def recorded(network: Any, batch: dict[str, Tensor]) -> Tensor:
        pads.update(batch["input_ids"][batch["attention_mask"] == 0].tolist())
        return task_loss(network, batch)

    monkeypatch.setattr("q8core.training.distillation.task_loss", recorded)
    labels = Checkpoint.open(folder).labels
    examples = tuple(TextExample("a film" + " of the year" * (i % 4), None, i % 3) for i in range(12))
    task = ClassifyTask(ClassifyData(labels, examples, examples), load_tokenizer(folder), max_length=32)
    finetune(str(folder), task, CONFIG, tmp_path / "fp32", "made up")
    assert pads == {Checkpoint.open(folder).config.spec.pad_token}
