"""Tiny random BERT checkpoints, made by the project's own quantization, writer and engines."""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase, digits, punctuation
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from q8core.arrays import Array
from q8core.checkpoint import GoldenExample, write_checkpoint
from q8core.engines import TokenBatch, build_engine
from q8core.quant import PRESETS, Plan, Scheme
from q8core.quant.qat.convert import arrays, convert
from q8core.quant.qat.prepare import calibrate, master_weights, prepare
from q8core.training.finetune import write_float
from tests.models import config_of, kind_of, network_of, plan_of

WORDS = [
    "the",
    "a",
    "film",
    "is",
    "not",
    "good",
    "bad",
    "who",
    "wrote",
    "it",
    "was",
    "written",
    "by",
    "ada",
    "in",
    "paris",
    "where",
    "book",
    "very",
]
LABELS = ("NEGATIVE", "NEUTRAL", "POSITIVE")
POSITIONS = 64


def make_tokenizer(folder: Path) -> None:
    """An uncased WordPiece that covers every ASCII word, and é and an emoji."""
    pieces = [*ascii_lowercase, *digits, *punctuation, "é", "😀"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *pieces, *(f"##{p}" for p in pieces)]
    ids = {token: place for place, token in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def make_checkpoint(
    folder: Path,
    task: str,
    *,
    seed: int = 0,
    golden_shift: float = 0.0,
    scheme: Scheme = PRESETS["static"],
    labels: tuple[str, ...] = LABELS,
) -> Path:
    """Write a calibrated int8 checkpoint with float weights and golden outputs; a shift makes the latter wrong.

    A classifier with a single label predicts a number.
    """
    make_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        num_labels=len(labels) if task == "classify" else 2,
        initializer_range=0.4,  # large enough for answers that differ between inputs
        id2label=dict(enumerate(labels)) if task == "classify" else None,
        problem_type="regression" if len(labels) == 1 else None,
    )
    model_class: Any = BertForSequenceClassification if task == "classify" else BertForQuestionAnswering
    config.architectures = [model_class.__name__]
    model = model_class(config).eval()
    described, plan = config_of(model), plan_of(model, scheme)
    prepared = prepare(network_of(model), plan)
    ids = torch.randint(5, config.vocab_size, (16, 32))
    calibrate(prepared, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    tensors, floats = arrays(convert(prepared)), arrays(master_weights(prepared))
    write_float(described, kind_of(model), floats, folder)
    write_checkpoint(
        folder,
        name=f"tiny-{task}",
        config=described,
        task=task,  # type: ignore[arg-type]
        labels=labels if task == "classify" else (),
        max_length=POSITIONS,
        scheme=scheme,
        tensors=tensors,
        tokenizer_folder=folder,
        golden=_golden({"int8": (plan, tensors), "fp32": (plan_of(model), floats)}, golden_shift),
    )
    return folder


def _golden(models: dict[str, tuple[Plan, dict[str, Array]]], shift: float) -> list[GoldenExample]:
    examples = []
    for length in (4, 9):
        ids = [2, *range(10, 8 + length), 3]
        logits = {}
        for backend, (plan, weights) in models.items():
            engine = build_engine(plan, weights, "fbgemm" if backend == "int8" else "auto")
            found = engine.infer(TokenBatch.pack([(ids, [0] * length)]))
            logits[backend] = ((found[0] if engine.head.reads == "first" else found) + shift).tolist()
        examples.append(GoldenExample(ids, [0] * length, logits))
    return examples
