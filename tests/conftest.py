"""Shared by all tests: a tiny real BERT with a real WordPiece vocabulary, as folders on disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GOMP_SPINCOUNT"] = "1000"  # some tests run several processes: waiting threads would take their CPUs

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification, BertTokenizerFast

from q8core.cache import CACHE_VARIABLE


@pytest.fixture(autouse=True)
def no_left_over_log_handlers() -> Iterator[None]:
    """A command's handler writes to what was stderr then: pytest closes that, and a later test gets the complaints."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in list(root.handlers):
        if type(handler) is logging.StreamHandler and handler not in before:  # pytest's own are of other classes
            root.removeHandler(handler)


_TEXT = """
a an the is was not in on of and to by very good bad great awful boring funny film movie plot actor story who what
where when did born city paris france berlin germany river tower built year red blue green house cat dog sat mat one
two three four five six seven eight nine ten
"""
WORDS = _TEXT.split()
SHARED = Path(__file__).resolve().parents[2] / "shared"


def write_vocabulary(folder: Path) -> Path:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    digits = [str(digit) for digit in range(10)]
    signs = list(".,!?'-()%$")
    pieces = [f"##{sign}" for sign in (*letters, *digits)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *digits, *signs, *pieces]
    vocabulary += [word for word in dict.fromkeys(WORDS) if word not in vocabulary]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return folder / "vocab.txt"


def tiny_config(vocabulary: int, **changes: object) -> BertConfig:
    values: dict[str, object] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,  # large enough for logits that differ between inputs
        **changes,
    }
    return BertConfig(**values)


def save_tiny(folder: Path, kind: str, seed: int = 0, labels: tuple[str, ...] = ("negative", "positive")) -> Path:
    """Save a random tiny BERT with its tokenizer, as ``save_pretrained`` does."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = BertTokenizerFast(vocab=str(write_vocabulary(folder)), do_lower_case=True)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    if kind == "classify":
        names = dict(enumerate(labels))
        model = BertForSequenceClassification(tiny_config(len(tokenizer), id2label=names))
    else:
        model = BertForQuestionAnswering(tiny_config(len(tokenizer)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # Hugging Face starts all biases at 0, which would hide mistakes
                parameter.uniform_(-0.3, 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test, and no process that one starts, touches the user's own cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv(CACHE_VARIABLE, str(folder))
        yield folder


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of the test's own, which does not exist yet."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a float classifier in Hugging Face's layout."""
    return save_tiny(tmp_path_factory.mktemp("tiny-classify") / "model", "classify")


@pytest.fixture(scope="session")
def tiny_qa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a float QA model in Hugging Face's layout."""
    return save_tiny(tmp_path_factory.mktemp("tiny-qa") / "model", "qa")


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; skips where it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("real data (../shared/data) is not here")
    return folder
