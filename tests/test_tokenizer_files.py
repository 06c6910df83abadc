"""A folder's tokenizer files, agreeing or not, are read as AutoTokenizer reads them, and copied."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, note, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from q8core.errors import CheckpointError
from q8core.tokenizer import TOKENIZER_FILES, copy_tokenizer, load_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*"abcdefgioprstul", *"PGÉ", *"éèñ", *"中文字", *".,["]
WORDS = ["Paris", "paris", "Café", "cafe", "café", "good", "Good", "中文"]
VOCABULARY = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]
TEXTS = [
    "Good Café in Paris",
    "É è ñ",
    "Cafe\u0301 CAFÉ",
    "中文字good",
    "a [MASK] b [SEP] [NEW] c[new]",
    "\x00a\u200bb",
    "\ufffd",
]

Settings = dict[str, Any]


def normalizer(kind: Settings | str | None) -> normalizers.Normalizer | None:
    if isinstance(kind, dict):
        return normalizers.BertNormalizer(**kind)
    if kind == "sequence":
        return normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    return normalizers.Lowercase() if kind else None


def write_tokenizer(
    folder: Path, kind: Settings | str | None = None, added: list[AddedToken] | None = None
) -> Tokenizer:
    kind = {"lowercase": True} if kind is None else kind
    ids = {word: i for i, word in enumerate(VOCABULARY)}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    made.normalizer = normalizer(kind if kind != "none" else None)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens([*SPECIAL])
    made.add_tokens(added or [])
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return made


def write_json(file: Path, values: object) -> None:
    if values is not None:
        file.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")


@contextlib.contextmanager
def new_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "source"


def ids_of(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(text).ids for text in TEXTS]


def oracle(folder: Path) -> list[list[int]] | None:
    """What AutoTokenizer makes of the texts; None where it cannot read the folder."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception:  # of many kinds
        return None
    return [tokenizer(text)["input_ids"] for text in TEXTS]


def agrees(folder: Path) -> bool:
    """Whether we read the folder as AutoTokenizer does, or refuse it as AutoTokenizer does."""
    expected = oracle(folder)
    if expected is None:
        with pytest.raises(CheckpointError, match=str(folder)):
            load_tokenizer(folder)
        return False
    assert ids_of(load_tokenizer(folder)) == expected
    return True


BOOLS = st.booleans()
BERT = st.fixed_dictionaries(
    {"lowercase": BOOLS, "strip_accents": st.none() | BOOLS, "handle_chinese_chars": BOOLS, "clean_text": BOOLS}
)
NORMALIZERS = BERT | BERT | st.sampled_from(["sequence", "lowercase", "none"])
STATE = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
TYPED = {"__type": "AddedToken", **STATE}
ADDED_LISTS = st.sampled_from(
    [
        {str(i): {"content": token, **STATE} for i, token in enumerate(SPECIAL)},
        {"200": {"content": "[NEW]", **STATE}, "4": {"content": "[MASK]", **STATE, "lstrip": True}},
        {"100": {"content": "[new]", **STATE, "normalized": True, "special": False}},
        {},
    ]
)
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "do_lower_case": BOOLS | BOOLS | st.sampled_from([None, 1, "true"]),
        "strip_accents": st.none() | BOOLS,
        "tokenize_chinese_chars": BOOLS | BOOLS | st.none(),
        "unk_token": st.sampled_from(["[UNK]", "[MASK]", {"content": "[UNK]", **TYPED}]),
        "mask_token": st.sampled_from(["[MASK]", "[NEW]", None, {"content": "[MASK]", **TYPED, "rstrip": True}]),
        "pad_token": st.sampled_from(["[PAD]", None, {"content": "[PAD]"}]),
        "cls_token": st.sampled_from(["[CLS]", "[MASK]", "<first>"]),
        "sep_token": st.sampled_from(["[SEP]", "[PAD]", {"content": "[SEP]", **TYPED}]),
        "bos_token": st.sampled_from([None, "[NEW]"]),
        "image_token": st.sampled_from(["[new]", {"content": "[new]", **TYPED}]),
        "additional_special_tokens": st.sampled_from([None, [], ["[NEW]"], ["good", {"content": "[new]", **TYPED}]]),
        "extra_special_tokens": st.sampled_from([[], ["[new]"], {"new_token": "[NEW]"}]),
        "split_special_tokens": BOOLS,
        "added_tokens_decoder": ADDED_LISTS,
        "tokenizer_class": st.sampled_from(
            ["BertTokenizer", "BertTokenizerFast", "ElectraTokenizerFast", "DistilBertTokenizer", "ConvBertTokenizer",
             "DPRQuestionEncoderTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", None]
        ),
        "model_max_length": st.just(512),
    },
)  # fmt: skip
SPECIAL_MAPS = st.fixed_dictionaries(
    {},
    optional={
        "mask_token": st.sampled_from(["[NEW]", {"content": "[MASK]", **STATE, "lstrip": True}]),
        "unk_token": st.just({"content": "[UNK]", **STATE}),
        "additional_special_tokens": st.just(["[new]"]),
    },
)
OLD_ADDED = st.sampled_from([{"[new]": 90, "[MASK]": 4}, {"good": 45}])
OWN_ADDED = st.sampled_from(
    [[], [AddedToken("[NEW]", special=True)], [AddedToken("[new]", lstrip=True), AddedToken("Paris")]]
)


@settings(max_examples=250, deadline=None)
@given(NORMALIZERS, OWN_ADDED, st.none() | CONFIGS, st.none() | SPECIAL_MAPS, st.none() | OLD_ADDED)
@example({"lowercase": True}, [], {"do_lower_case": False}, None, None)
@example({"lowercase": False}, [], {"do_lower_case": True}, None, None)
@example({"lowercase": False}, [], None, None, None)
@example({"lowercase": False}, [], {"do_lower_case": True, "tokenizer_class": "PreTrainedTokenizerFast"}, None, None)
@example("sequence", [], {"additional_special_tokens": [{"content": "[new]", **TYPED}]}, None, {"[new]": 90})
@example(
    {"lowercase": False},
    [AddedToken("[new]", lstrip=True)],
    {"image_token": "[new]", "added_tokens_decoder": {}, "tokenizer_class": "ConvBertTokenizer"},
    None,
    None,
)
def test_files_are_read_as_auto_tokenizer_reads_them_and_a_copys_agree(
    kind: Settings | str, own: list[AddedToken], config: Settings | None, special: Settings | None, old: Settings | None
) -> None:
    if config and config.get("tokenizer_class") not in (None, "BertTokenizer", "BertTokenizerFast"):
        for key in ("do_lower_case", "tokenize_chinese_chars"):  # a class that does not read them takes anything
            config = {**config, key: bool(config[key])} if key in config else config
    note(f"tokenizer.json {kind} {own}, config {config}, special {special}, old {old}")
    with new_folder() as folder:
        write_tokenizer(folder, kind, own)
        write_json(folder / "tokenizer_config.json", config)
        write_json(folder / "special_tokens_map.json", special)
        write_json(folder / "added_tokens.json", old)
        if not agrees(folder):
            return
        copy = folder.parent / "copy"
        copy.mkdir()
        copy_tokenizer(folder, copy)
        shutil.copyfile(folder / "config.json", copy / "config.json")
        assert ids_of(load_tokenizer(copy)) == oracle(copy) == ids_of(load_tokenizer(folder))
        again = folder.parent / "again"
        again.mkdir()
        copy_tokenizer(copy, again)  # byte for byte, since the first copy's files agree
        assert files_of(again) == {name: content for name, content in files_of(copy).items() if name != "config.json"}


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "q8core.tokenizer"]


def test_a_disagreement_is_logged_once_with_files_and_winner(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tokenizer(tmp_path, {"lowercase": True})
    write_json(tmp_path / "tokenizer_config.json", {"do_lower_case": False, "strip_accents": True})
    load_tokenizer(tmp_path)
    load_tokenizer(tmp_path)
    assert logged(caplog) == [
        f"tokenizer files disagree: folder={tmp_path} tokenizer.json has lowercase=true; tokenizer_config.json's "
        "do_lower_case false wins"
    ]


@pytest.mark.parametrize(
    ("kind", "config", "said"),
    [
        (
            {"lowercase": False},
            None,
            "lowercase=false; tokenizer_config.json has no do_lower_case, and BertTokenizer's default true wins",
        ),
        (
            "sequence",
            {"do_lower_case": True},
            """has normalizer="Sequence"; BertTokenizer's own "BertNormalizer" wins""",
        ),
        (
            {"lowercase": False},
            {"do_lower_case": True, "tokenizer_class": "PreTrainedTokenizerFast"},
            "tokenizer_config.json has do_lower_case=true; tokenizer.json's lowercase false wins, since PreTrained",
        ),
        (
            {"lowercase": True},
            {"added_tokens_decoder": {"4": {"content": "[MASK]", **STATE, "lstrip": True}}},
            "tokenizer.json has the added token '[MASK]' with lstrip=false; the files beside it and BertTokenizer's "
            "defaults have lstrip=true, and win",
        ),
    ],
)
def test_what_wins_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: Settings | str, config: Settings | None, said: str
) -> None:
    write_tokenizer(tmp_path, kind)
    write_json(tmp_path / "tokenizer_config.json", config)
    load_tokenizer(tmp_path)
    assert len(logged(caplog)) == 1
    assert said in logged(caplog)[0]


def test_files_that_agree_are_copied_byte_for_byte_and_nothing_of_another_stays(
    tiny_qa: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "special_tokens_map.json").write_text("{}")
    (tmp_path / "other.txt").write_text("mine")
    copy_tokenizer(tiny_qa, tmp_path)
    present = [name for name in TOKENIZER_FILES if (tiny_qa / name).is_file()]
    assert {file.name for file in tmp_path.iterdir()} == {*present, "other.txt"}
    assert all((tmp_path / name).read_bytes() == (tiny_qa / name).read_bytes() for name in present)
    assert not logged(caplog)
    copy_tokenizer(tmp_path, tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", "{", r"tokenizer_config\.json, line 1: not valid JSON"),
        ("tokenizer_config.json", b"\xff", r"tokenizer_config\.json, line 1: not UTF-8 text"),
        ("tokenizer_config.json", "[" * 100_000, r"tokenizer_config\.json: nested too deeply"),
        ("tokenizer_config.json", "[1]", r"tokenizer_config\.json holds \[1\]; a JSON object"),
        ("tokenizer_config.json", {"do_lower_case": "yes"}, r'do_lower_case is "yes"; true or false'),
        ("tokenizer_config.json", {"do_lower_case": None}, "do_lower_case is null; true or false"),
        ("tokenizer_config.json", {"strip_accents": 0}, "strip_accents is 0; true or false"),
        ("tokenizer_config.json", {"tokenize_chinese_chars": []}, r"tokenize_chinese_chars is \[\]; true or false"),
        ("tokenizer_config.json", {"unk_token": None}, "unk_token is null"),
        ("tokenizer_config.json", {"mask_token": 5}, "mask_token is 5; a token is needed"),
        ("tokenizer_config.json", {"mask_token": {"content": "x"}}, "mask_token is .*; a token is needed"),
        ("tokenizer_config.json", {"mask_token": {"content": "x", **TYPED, "lstrip": 1}}, "flags must be true or"),
        ("tokenizer_config.json", {"cls_token": None}, "cls_token is null; the vocabulary's token for that"),
        ("tokenizer_config.json", {"sep_token": None}, "sep_token is null; the vocabulary's token for that"),
        ("tokenizer_config.json", {"additional_special_tokens": "x"}, 'tokens is "x"; a list of tokens'),
        ("tokenizer_config.json", {"additional_special_tokens": [1]}, r"additional_special_tokens\.0 is 1; a token"),
        ("tokenizer_config.json", {"added_tokens_decoder": None}, "added_tokens_decoder is null; an object"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"4": "x"}}, r'added_tokens_decoder\.4 is "x"; a token'),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "x"}}}, r"added_tokens_decoder\.x is"),
        ("tokenizer_config.json", {"tokenizer_class": 5}, "tokenizer_class is 5; a name"),
        ("tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"}, "is 'GPT2Tokenizer'; q8bert reads BertT"),
        ("tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer"}, "WordPiece; RobertaTokenizer needs a BPE"),
        ("config.json", {"model_type": "albert"}, "model_type in config.json is 'albert'; without the former"),
        ("special_tokens_map.json", {"mask_token": 1}, r"special_tokens_map\.json over it,: mask_token is 1; a token"),
        ("special_tokens_map.json", "[]", r"special_tokens_map\.json holds \[\]"),
        ("added_tokens.json", {"x": "1"}, r'added_tokens\.json: x is "1"; a token\'s id'),
        ("tokenizer.json", "{", "not a readable tokenizer"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_file_and_value(tmp_path: Path, name: str, content: object, message: str) -> None:
    write_tokenizer(tmp_path)
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        write_json(tmp_path / name, content)
    with pytest.raises(CheckpointError, match=message) as refused:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_other_models_and_sequences_are_refused(tmp_path: Path) -> None:
    made = write_tokenizer(tmp_path)
    made.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    made.save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: .* post_processor does not put special"):
        load_tokenizer(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
    assert agrees(tmp_path)
    Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="the model is WordLevel; BertTokenizer needs a WordPiece vocabulary"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("words", "config", "cased"),
    [
        ([*VOCABULARY, "[unused1]"], None, True),
        ([*SPECIAL, "[unused1]", *"abcdefgiopr", "good", "paris", "ß", "中"], None, False),
        (VOCABULARY, {"model_max_length": 64}, True),
        (VOCABULARY, {"do_lower_case": False}, True),
        (VOCABULARY, {"do_lower_case": True}, False),
    ],
)
def test_the_advice_for_a_vocabulary_alone_keeps_its_case(
    tmp_path: Path, words: list[str], config: Settings | None, *, cased: bool
) -> None:
    folder = tmp_path / "it's mine"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    write_json(folder / "config.json", {"model_type": "bert"})
    write_json(folder / "tokenizer_config.json", config)
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json") as refused:
        load_tokenizer(folder)
    advice = str(refused.value)
    code = advice[advice.index("AutoTokenizer") :].split(", which obeys")[0]
    eval(code, {"AutoTokenizer": AutoTokenizer})
    assert load_tokenizer(folder).encode("Good Paris", add_special_tokens=False).tokens == (
        ["Good", "Paris"] if cased else ["good", "paris"]
    )
    assert agrees(folder)


def test_the_bundled_vocabulary_is_without_case(tmp_path: Path) -> None:
    bundled = Path(__file__).resolve().parents[1] / "service" / "checkpoints" / "sst2-minilm-l6"
    shutil.copyfile(bundled / "vocab.txt", tmp_path / "vocab.txt")
    with pytest.raises(CheckpointError, match="do_lower_case=True"):
        load_tokenizer(tmp_path)
