"""Tokenizers of hub folders: taken over, made of vocabularies, or refused."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertTokenizerFast

from q8core.errors import CheckpointError
from q8core.importing.tokenizer_files import write_tokenizer
from q8core.tokenizer import load_tokenizer, model_max_length
from tests.conftest import save_tiny, write_vocabulary
from tests.importing.hub_folders import change_json

TEXTS = ("A good film!", "was it GREAT? naïve 7", "the cat sat")
FILES = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with vocab.txt alone."""
    saved = save_tiny(tmp_path / "it", "classify")
    for name in FILES:
        (saved / name).unlink()
    (tmp_path / "made").mkdir()
    return saved


def ids(folder: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(folder)
    return [tokenizer.encode(text).ids for text in TEXTS]


def theirs(folder: Path, **options: object) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    return [tokenizer(text)["input_ids"] for text in TEXTS]


def test_a_vocabulary_without_a_word_about_case(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    how = write_tokenizer(folder, made)
    assert "made of vocab.txt by transformers' BertTokenizer" in how
    assert "nothing in the folder says do_lower_case, so it is transformers' default, true" in how
    assert "NOTE" not in how
    assert sorted(path.name for path in made.iterdir()) == sorted(FILES)
    assert ids(made) == theirs(folder) == theirs(made)
    config = json.loads((made / "tokenizer_config.json").read_text())
    assert config["do_lower_case"] is True
    assert config.keys().isdisjoint(("model_max_length", "is_local", "local_files_only"))
    assert model_max_length(made) is None


def test_a_vocabulary_that_looks_cased_is_told_of(folder: Path, tmp_path: Path) -> None:
    with (folder / "vocab.txt").open("a") as file:
        file.write("Paris\n")
    assert "has words with upper-case letters" in write_tokenizer(folder, tmp_path / "made")
    change_json(folder / "tokenizer_config.json", do_lower_case=False)
    how = write_tokenizer(folder, tmp_path / "made")
    assert how.endswith("BertTokenizer, do_lower_case false")
    assert load_tokenizer(tmp_path / "made").encode("Paris").tokens[1] == "Paris"


def test_a_limit_of_length_is_kept_and_no_limit_is_not_written(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    for limit, kept in ((64, 64), (int(1e30), None), (1e30, None)):
        change_json(folder / "tokenizer_config.json", model_max_length=limit)
        write_tokenizer(folder, made)
        assert model_max_length(made) == kept
        assert ("model_max_length" in (made / "tokenizer_config.json").read_text()) == (kept is not None)


def test_files_that_are_there_keep_their_bytes(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "it", "classify")
    change_json(folder / "tokenizer_config.json", model_max_length=64)
    (tmp_path / "made").mkdir()
    assert write_tokenizer(folder, tmp_path / "made") == "tokenizer.json taken over"
    for name in FILES:
        assert (tmp_path / "made" / name).read_bytes() == (folder / name).read_bytes()
    change_json(folder / "tokenizer_config.json", model_max_length=int(1e30))
    write_tokenizer(folder, tmp_path / "made")
    assert model_max_length(tmp_path / "made") is None
    assert "model_max_length" not in (tmp_path / "made" / "tokenizer_config.json").read_text()
    assert ids(tmp_path / "made") == theirs(folder)


def test_a_tokenizer_without_its_config(tmp_path: Path) -> None:
    """Transformers' class for the model decides what the file of settings would."""
    folder = save_tiny(tmp_path / "it", "classify")
    BertTokenizerFast(vocab=str(write_vocabulary(folder)), do_lower_case=False).save_pretrained(folder)
    (folder / "tokenizer_config.json").unlink()
    (tmp_path / "made").mkdir()
    assert write_tokenizer(folder, tmp_path / "made").startswith(
        "tokenizer.json made of tokenizer.json by transformers'"
    )
    assert ids(tmp_path / "made") == theirs(folder)


def test_no_vocabulary_is_refused_and_not_made_empty(folder: Path, tmp_path: Path) -> None:
    (folder / "vocab.txt").unlink()
    assert len(AutoTokenizer.from_pretrained(folder)) == 5  # what transformers makes of nothing
    with pytest.raises(CheckpointError, match=r"has no tokenizer: neither tokenizer\.json nor vocab\.txt"):
        write_tokenizer(folder, tmp_path / "made")
    (folder / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(CheckpointError, match=r"has no tokenizer: neither tokenizer\.json nor vocab\.txt"):
        write_tokenizer(folder, tmp_path / "made")


def test_bytes_and_merges(tmp_path: Path) -> None:
    """The files of a byte-level vocabulary, by transformers' class for the config's model type."""
    folder, made = tmp_path / "it", tmp_path / "made"
    for each in (folder, made):
        each.mkdir()
    letters = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "<mask>",
        "Ġ",
        *"abcdefghijklmnopqrstuvwxyzA!?7GREATï",
        "Ã",
        "¯",
        "go",
        "Ġgo",
    ]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(letters))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(CheckpointError, match=r"transformers|has no tokenizer"):
        write_tokenizer(folder, made)
    (folder / "merges.txt").write_text("#version: 0.2\ng o\nĠ go\n")
    how = write_tokenizer(folder, made)
    assert how == "tokenizer.json made of vocab.json and merges.txt by transformers' RobertaTokenizer"
    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))
    assert [tokenizer.encode(text).ids for text in TEXTS] == theirs(folder)
    assert "Ġgo" in tokenizer.encode(TEXTS[0]).tokens


def field(number: int, value: bytes | int | float) -> bytes:
    """A field of a protocol buffer; all numbers and lengths here are small."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def sentencepiece_model(*words: str) -> bytes:
    """A unigram model, as sentencepiece.bpe.model of XLM-R."""
    pieces = [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        *((word, -1.0 - i, 1) for i, word in enumerate(words)),
    ]
    encoded = [field(1, field(1, word.encode()) + field(2, score) + field(3, kind)) for word, score, kind in pieces]
    return b"".join(encoded) + field(2, field(3, 1)) + field(3, field(1, b"identity") + field(3, 1))


def test_sentencepiece(tmp_path: Path) -> None:
    folder, made = tmp_path / "it", tmp_path / "made"
    for each in (folder, made):
        each.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz"
    (folder / "sentencepiece.bpe.model").write_bytes(sentencepiece_model("▁good", "▁film", "▁a", "▁", *letters))
    (folder / "config.json").write_text('{"model_type": "xlm-roberta"}')
    if importlib.util.find_spec("sentencepiece") is None:
        with pytest.raises(
            CheckpointError, match=r"which reads sentencepiece\.bpe\.model, is not installed: pip install"
        ):
            write_tokenizer(folder, made)
        return
    assert write_tokenizer(folder, made).endswith(
        "made of sentencepiece.bpe.model by transformers' XLMRobertaTokenizer"
    )
    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))
    assert tokenizer.encode("a good film").tokens == ["<s>", "▁a", "▁good", "▁film", "</s>"]


def test_a_broken_vocabulary_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    (folder / "vocab.txt").write_bytes(b"\xff\xfe\x00broken")
    with pytest.raises(CheckpointError, match="transformers cannot make a tokenizer of its files"):
        write_tokenizer(folder, tmp_path / "made")
